//! placeholder

/// One packet from the TUN, or several that the system left in one.
#[derive(Debug)]
pub struct SuperPacket<'a> {
    /// The bytes.
    pub bytes: &'a mut [u8],
}
