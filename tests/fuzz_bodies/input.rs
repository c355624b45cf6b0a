//! A fuzzer's bytes, read as choices one after the other; what is read beyond their end is zero.

#[path = "../simulation/rng.rs"]
#[allow(clippy::duplicate_mod, reason = "where engines are fuzzed, their world and the bytes both roll dice")]
pub(crate) mod rng;

/// What is left of the bytes.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub(crate) fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.word()) % bound.max(1)
    }

    /// As many bytes, or as there are.
    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// Exactly as many.
    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// A list of bytes behind its length.
    pub(crate) fn list(&mut self, len_max: usize) -> &'a [u8] {
        let len = usize::from(self.word()) % (len_max + 1);
        self.bytes(len)
    }

    /// Changes a message in one of a few ways: a bit or a byte of it, its length, what follows it.
    pub(crate) fn mutate(&mut self, message: &mut Vec<u8>) {
        let at = self.below(message.len());
        match self.byte() & 7 {
            0 | 1 if !message.is_empty() => message[at] ^= 1 << (self.byte() & 7),
            2 if !message.is_empty() => message[at] = self.byte(),
            3 => message.truncate(at),
            4 => message.extend_from_slice(self.list(64)),
            5 => {
                let patch = self.list(32);
                message.iter_mut().skip(at).zip(patch).for_each(|(byte, new)| *byte = *new);
            }
            6 => message.insert(at, self.byte()),
            _ => {}
        }
    }
}
