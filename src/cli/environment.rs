//! What the environment asks for: wireguard-go's variables, and adit's own.
//!
//! An empty variable counts as unset, as there. `WG_TUN_NAME_FILE` is one of wireguard-go's too, but
//! only on macOS, where the system chooses the names of interfaces; it has no meaning here.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::RawFd;

/// `1`: stay in the foreground.
pub(super) const FOREGROUND: &str = "WG_PROCESS_FOREGROUND";
/// The number of an open TUN device.
pub(super) const TUN_FD: &str = "WG_TUN_FD";
/// The number of a listening UNIX socket.
pub(super) const UAPI_FD: &str = "WG_UAPI_FD";
/// How much to log.
pub(super) const LOG_LEVEL: &str = "LOG_LEVEL";
/// `1`: allow core dumps and debuggers.
pub(super) const DUMPABLE: &str = "ADIT_DUMPABLE";
/// Of our own making: the number of the socket on which the process that went ahead into the
/// background tells the one that waits for it how it went.
pub(super) const READY_FD: &str = "ADIT_READY_FD";
/// The service manager's: sd_notify(3).
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// The variables that count, read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Environment {
    pub(super) foreground: bool,
    pub(super) log_level: Option<String>,
    pub(super) dumpable: bool,
    pub(super) notify_socket: Option<OsString>,
    /// What was handed over, if that can be understood.
    pub(super) numbers: Result<Numbers, EnvironmentError>,
}

/// The numbers of descriptors that were handed over, all different.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) tun: Option<RawFd>,
    pub(super) uapi: Option<RawFd>,
    pub(super) ready: Option<RawFd>,
}

/// A variable has a value that cannot be meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EnvironmentError {
    NotADescriptor { variable: &'static str, value: OsString },
    SameDescriptor(RawFd),
}

impl fmt::Display for EnvironmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotADescriptor { variable, value } => {
                write!(
                    f,
                    "{variable}={value:?} is not the number of a file descriptor: give one from 3 on, or unset it"
                )
            }
            Self::SameDescriptor(number) => {
                write!(
                    f,
                    "Two of {TUN_FD}, {UAPI_FD} and {READY_FD} name the same descriptor {number}: each needs its own"
                )
            }
        }
    }
}

impl Environment {
    /// Reads the variables, each by `variable`.
    pub(super) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is_one = |name| set(name).is_some_and(|value| value == "1");
        Self {
            foreground: is_one(FOREGROUND),
            log_level: set(LOG_LEVEL).map(|value| value.to_string_lossy().into_owned()),
            dumpable: is_one(DUMPABLE),
            notify_socket: set(NOTIFY_SOCKET),
            numbers: Numbers::read(set),
        }
    }
}

impl Numbers {
    fn read(set: impl Fn(&str) -> Option<OsString>) -> Result<Self, EnvironmentError> {
        let number = |variable: &'static str| match set(variable) {
            None => Ok(None),
            Some(value) => match value.to_str().and_then(descriptor_number) {
                Some(number) => Ok(Some(number)),
                None => Err(EnvironmentError::NotADescriptor { variable, value }),
            },
        };
        let Self { tun, uapi, ready } = Self { tun: number(TUN_FD)?, uapi: number(UAPI_FD)?, ready: number(READY_FD)? };
        for (one, other) in [(tun, uapi), (tun, ready), (uapi, ready)] {
            if let (Some(one), Some(other)) = (one, other)
                && one == other
            {
                return Err(EnvironmentError::SameDescriptor(one));
            }
        }
        Ok(Self { tun, uapi, ready })
    }
}

/// Digits only, and not one of the standard three.
fn descriptor_number(text: &str) -> Option<RawFd> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&number| digits && number >= crate::sys::process::FIRST_HANDED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Environment {
        Environment::read(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn variables() {
        let nothing = read(&[]);
        let expected = Environment {
            foreground: false,
            log_level: None,
            dumpable: false,
            notify_socket: None,
            numbers: Ok(Numbers::default()),
        };
        assert_eq!(nothing, expected);
        assert_eq!(read(&[(TUN_FD, ""), (LOG_LEVEL, ""), (FOREGROUND, "")]), nothing);
        assert_eq!(read(&[(FOREGROUND, "true"), (DUMPABLE, "0")]), nothing);
        let all = [
            (FOREGROUND, "1"),
            (LOG_LEVEL, "verbose"),
            (DUMPABLE, "1"),
            (TUN_FD, "3"),
            (UAPI_FD, "4"),
            (READY_FD, "5"),
            (NOTIFY_SOCKET, "@x"),
        ];
        let expected = Environment {
            foreground: true,
            log_level: Some("verbose".into()),
            dumpable: true,
            notify_socket: Some("@x".into()),
            numbers: Ok(Numbers { tun: Some(3), uapi: Some(4), ready: Some(5) }),
        };
        assert_eq!(read(&all), expected);
    }

    #[test]
    fn descriptors_that_cannot_be_meant() {
        for value in ["x", "-1", "+3", "3.0", "0x3", " 3", "99999999999", "0", "2"] {
            let error = EnvironmentError::NotADescriptor { variable: TUN_FD, value: value.into() };
            assert_eq!(read(&[(TUN_FD, value)]).numbers, Err(error));
        }
        assert_eq!(read(&[(TUN_FD, "7"), (UAPI_FD, "7")]).numbers, Err(EnvironmentError::SameDescriptor(7)));
        assert_eq!(read(&[(READY_FD, "7"), (UAPI_FD, "7")]).numbers, Err(EnvironmentError::SameDescriptor(7)));
    }
}
