//! A device's figures as OpenMetrics, and the small HTTP server that shows them.
//!
//! | file | what |
//! |---|---|
//! | `exposition` | the text: a snapshot, figures and families in, OpenMetrics out |
//! | `http` | `/metrics`, `/livez` and `/readyz` for whatever is a [`Site`] |
//!
//! What each metric means stands in `docs/metrics.md`.

mod exposition;
mod http;

pub use exposition::{CONTENT_TYPE, Exposition, Family, Kind, PREFIXES_MAX};
pub use http::{CONNECTIONS_MAX, DeviceSite, Server, Site, serve};
