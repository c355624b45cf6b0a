//! Payloads that know their flow, their place in it and their length, and the ledger of those that arrived: each flow in
//! order, none twice, none altered.

use std::collections::BTreeMap;

/// Bytes of the shortest: flow and number.
pub const NUMBERED_LEN_MIN: usize = 12;
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Fills `payload` as number `number` of a flow.
///
/// # Panics
/// If it is too short.
pub fn write_numbered(payload: &mut [u8], flow: u32, number: u64) {
    let len = payload.len() as u64;
    let (head, rest) = payload.split_at_mut(NUMBERED_LEN_MIN);
    head[..4].copy_from_slice(&flow.to_be_bytes());
    head[4..].copy_from_slice(&number.to_be_bytes());
    let mut word = (number ^ u64::from(flow) << 40 ^ len << 20).wrapping_mul(MULTIPLIER);
    for bytes in rest.chunks_mut(8) {
        word = word.rotate_left(17).wrapping_mul(MULTIPLIER) ^ 0x5555;
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
    }
}

/// The flow and the number of a payload; `expected` is room for comparing. Fails the test if it was altered.
#[track_caller]
pub fn read_numbered(payload: &[u8], expected: &mut Vec<u8>) -> (u32, u64) {
    assert!(payload.len() >= NUMBERED_LEN_MIN, "{} bytes are no numbered payload", payload.len());
    let flow = u32::from_be_bytes(payload[..4].try_into().expect("four bytes"));
    let number = u64::from_be_bytes(payload[4..12].try_into().expect("eight bytes"));
    expected.resize(payload.len(), 0);
    write_numbered(expected, flow, number);
    assert!(*expected == payload, "number {number} of flow {flow}, {} bytes, was altered", payload.len());
    (flow, number)
}

/// What has arrived of some flows.
#[derive(Debug, Default)]
pub struct Ledger {
    flows: BTreeMap<u32, Flow>,
    expected: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Flow {
    arrived: u64,
    /// The number after the last one that arrived.
    next: u64,
}

impl Ledger {
    /// Enters a payload. Fails the test if it was altered, or if a later one of its flow, or itself, has come before.
    #[track_caller]
    pub fn enter(&mut self, payload: &[u8]) {
        let (flow, number) = read_numbered(payload, &mut self.expected);
        let held = self.flows.entry(flow).or_default();
        assert!(number >= held.next, "number {number} of flow {flow} came after number {}", held.next - 1);
        *held = Flow { arrived: held.arrived + 1, next: number + 1 };
    }

    /// How many of a flow have arrived.
    pub fn arrived(&self, flow: u32) -> u64 {
        self.flows.get(&flow).map_or(0, |held| held.arrived)
    }

    /// How many have arrived in all.
    pub fn total(&self) -> u64 {
        self.flows.values().map(|held| held.arrived).sum()
    }

    /// The number that follows the last one of a flow to arrive.
    pub fn next(&self, flow: u32) -> u64 {
        self.flows.get(&flow).map_or(0, |held| held.next)
    }
}
