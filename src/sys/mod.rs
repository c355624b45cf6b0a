//! The only place where `unsafe` is allowed: safe functions over the system's interfaces.

pub(crate) mod netlink;
pub(crate) mod tun;
