//! Connections through a tunnel from inside a process: no TUN, no privilege.
