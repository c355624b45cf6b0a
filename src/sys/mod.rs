//! The only place where `unsafe` is allowed: safe functions over the system's interfaces.

pub(crate) mod bpf;
pub(crate) mod capabilities;
pub(crate) mod clock;
pub(crate) mod cmsg;
pub(crate) mod inotify;
pub(crate) mod interface;
pub(crate) mod local_time;
pub(crate) mod mmsg;
pub(crate) mod netlink;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod seccomp;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod thread;
pub(crate) mod tun;
