//! What can be wrong with a request, and the errno that answers it.
//!
//! No variant holds any of the client's text: a line that is wrong may still be a secret.

use std::fmt;

use crate::device::config::ApplyError;

/// Why a request was refused. Lines are counted from 1 after the `set=1`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A line has no `=`.
    NotKeyValue {
        /// Which line.
        line: u64,
    },
    /// There is no such key, or not in this place: device keys come before the first `public_key`, peer keys after it.
    UnknownKey {
        /// Which line.
        line: u64,
    },
    /// The value is not one that the key takes.
    InvalidValue {
        /// Which line.
        line: u64,
        /// The key.
        key: &'static str,
    },
    /// A line is longer than [`LINE_BYTES_MAX`](super::set::LINE_BYTES_MAX).
    LineTooLong {
        /// Which line.
        line: u64,
    },
    /// What was asked would take more than [`PARSED_BYTES_MAX`](super::set::PARSED_BYTES_MAX).
    TooLarge {
        /// Which line.
        line: u64,
    },
    /// The client stopped before the empty line that ends a request.
    Unfinished,
    /// `get=1` was followed by something else than an empty line.
    GetWithArguments,
    /// The request was right, but the device could not do it.
    Apply(ApplyError),
}

impl Error {
    /// The number of the reply `errno=…`: 0 is success, errors are negative as wireguard-go's are.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotKeyValue { .. } => -libc::EPROTO,
            Self::UnknownKey { .. } | Self::InvalidValue { .. } | Self::Unfinished | Self::GetWithArguments => {
                -libc::EINVAL
            }
            Self::LineTooLong { .. } | Self::Apply(ApplyError::Closed) => -libc::EIO,
            Self::TooLarge { .. } | Self::Apply(ApplyError::TooLarge) => -libc::ENOMEM,
            Self::Apply(ApplyError::ListenPort(_) | ApplyError::Fwmark(_)) => -libc::EADDRINUSE,
            // wireguard-go's number for what has no other.
            Self::Apply(ApplyError::Other(_)) => -libc::ENOANO,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotKeyValue { line } => write!(f, "line {line} has no `=`"),
            Self::UnknownKey { line } => write!(f, "line {line} has a key that is unknown here"),
            Self::InvalidValue { line, key } => write!(f, "line {line} has no valid value for {key}"),
            Self::LineTooLong { line } => write!(f, "line {line} is too long"),
            Self::TooLarge { line } => write!(f, "the request became too large in line {line}"),
            Self::Unfinished => f.write_str("the request ended without an empty line"),
            Self::GetWithArguments => f.write_str("get=1 was not followed by an empty line"),
            Self::Apply(_) => f.write_str("the device could not apply the request"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Apply(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ApplyError> for Error {
    fn from(error: ApplyError) -> Self {
        Self::Apply(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    /// [UAPI] The numbers and their sign.
    #[test]
    fn errno_table() {
        let io_error = || io::Error::from_raw_os_error(libc::EACCES);
        let check = |error: Error, expected| assert_eq!(error.errno(), expected, "{error}");
        check(Error::NotKeyValue { line: 1 }, -71);
        check(Error::UnknownKey { line: 1 }, -22);
        check(Error::InvalidValue { line: 1, key: "fwmark" }, -22);
        check(Error::LineTooLong { line: 1 }, -5);
        check(Error::TooLarge { line: 1 }, -12);
        check(Error::Unfinished, -22);
        check(Error::GetWithArguments, -22);
        check(Error::Apply(ApplyError::ListenPort(io_error())), -98);
        check(Error::Apply(ApplyError::Fwmark(io_error())), -98);
        check(Error::Apply(ApplyError::TooLarge), -12);
        check(Error::Apply(ApplyError::Closed), -5);
        check(Error::Apply(ApplyError::Other(io_error())), -55);
    }
}
