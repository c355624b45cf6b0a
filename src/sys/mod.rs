//! Safe functions over system calls: the only folder where `unsafe` is allowed.

#[cfg(feature = "daemon")]
pub(crate) mod capabilities;
#[cfg(feature = "daemon")]
pub(crate) mod local_time;
#[cfg(feature = "daemon")]
pub(crate) mod process;
#[cfg(feature = "daemon")]
pub(crate) mod signal;
