//! The sidecar: proxies and forwards from one file.
