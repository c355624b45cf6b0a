//! The only place where `unsafe` is allowed: safe functions over what the system offers.

pub(crate) mod clock;
pub(crate) mod cmsg;
pub(crate) mod mmsg;
pub(crate) mod socket;
