//! The pipeline: threads and queues around the protocol.

pub mod config;
