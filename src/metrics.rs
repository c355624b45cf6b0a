//! A device's figures as OpenMetrics.
