//! placeholder
pub(crate) mod inotify;
pub(crate) mod interface;
