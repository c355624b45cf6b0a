//! BLAKE2s with a key, to 16 bytes. [RFC 7693]
//!
//! The hashes of the protocol are a library's. No library gives away the state after the block of a key, which is what the
//! filter's program goes on from; so that much is here, and what it takes to try the program out.

/// Bytes of a key.
pub(super) const KEY_LEN: usize = 32;
/// Bytes of a mac.
pub(super) const MAC_LEN: usize = 16;
/// Bytes of a block.
pub(super) const BLOCK_LEN: usize = 64;

/// The state: eight words. RFC 7693, section 2.1.
pub(super) type State = [u32; 8];

/// The initial state. RFC 7693, section 2.6.
pub(super) const IV: State =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The order in which each of the ten rounds takes the words of the block. RFC 7693, section 2.7.
pub(super) const SIGMA: [[u8; 16]; 10] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

/// By how many bits the two halves of a mixing rotate `d` and `b`. RFC 7693, section 2.1.
pub(super) const ROTATIONS: [[u32; 2]; 2] = [[16, 12], [8, 7]];

/// The places of the four words that the mixing `index` of a round works on: first the columns, then the diagonals.
/// RFC 7693, section 3.2.
pub(super) fn mixed(index: usize) -> [usize; 4] {
    [0, 1, 2, 3].map(|row| 4 * row + (index + row * (index / 4)) % 4)
}

/// The state after the block of the key. RFC 7693, section 3.3.
pub(super) fn keyed(key: &[u8; KEY_LEN]) -> State {
    let mut state = IV;
    state[0] ^= 0x0101_0000 ^ (KEY_LEN as u32) << 8 ^ MAC_LEN as u32;
    compress(&mut state, key, BLOCK_LEN, false);
    state
}

/// The mac of a message that is not empty.
pub(super) fn mac(key: &[u8; KEY_LEN], message: &[u8]) -> [u8; MAC_LEN] {
    let mut state = keyed(key);
    let mut hashed = BLOCK_LEN;
    let mut blocks = message.chunks(BLOCK_LEN).peekable();
    while let Some(block) = blocks.next() {
        hashed += block.len();
        compress(&mut state, block, hashed, blocks.peek().is_none());
    }
    let mut mac = [0; MAC_LEN];
    for (bytes, word) in mac.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    mac
}

/// Takes in a block, padded with zeros; `hashed` bytes with it. RFC 7693, section 3.2.
fn compress(state: &mut State, bytes: &[u8], hashed: usize, last: bool) {
    let mut block = [0; BLOCK_LEN];
    block[..bytes.len()].copy_from_slice(bytes);
    let (words, _) = block.as_chunks();
    let mut v = [0; 16];
    v[..8].copy_from_slice(state);
    v[8..].copy_from_slice(&IV);
    v[12] ^= hashed as u32;
    v[14] ^= if last { u32::MAX } else { 0 };
    for order in SIGMA {
        for (index, inputs) in order.as_chunks::<2>().0.iter().enumerate() {
            let [a, b, c, d] = mixed(index);
            for (input, [first, second]) in inputs.iter().zip(ROTATIONS) {
                v[a] = v[a].wrapping_add(v[b]).wrapping_add(u32::from_le_bytes(words[usize::from(*input)]));
                v[d] = (v[d] ^ v[a]).rotate_right(first);
                v[c] = v[c].wrapping_add(v[d]);
                v[b] = (v[b] ^ v[c]).rotate_right(second);
            }
        }
    }
    for (index, word) in state.iter_mut().enumerate() {
        *word ^= v[index] ^ v[index + 8];
    }
}
