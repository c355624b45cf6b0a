//! What the environment asks for: wireguard-go's variables, and adit's own.
//!
//! An empty variable counts as unset, as there. `WG_TUN_NAME_FILE` is one of wireguard-go's too, but
//! only on macOS, where the system chooses the names of interfaces; it has no meaning here.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::Duration;

use super::logging::LogForm;
use super::{metrics, workers};

/// `1`: stay in the foreground.
pub(super) const FOREGROUND: &str = "WG_PROCESS_FOREGROUND";
/// The number of an open TUN device.
pub(super) const TUN_FD: &str = "WG_TUN_FD";
/// The number of a listening UNIX socket.
pub(super) const UAPI_FD: &str = "WG_UAPI_FD";
/// How much to log.
pub(super) const LOG_LEVEL: &str = "LOG_LEVEL";
/// How to write the log.
pub(super) const LOG_FORMAT: &str = "ADIT_LOG_FORMAT";
/// Where to serve metrics.
pub(super) const METRICS: &str = "ADIT_METRICS";
/// `1`: allow core dumps and debuggers.
pub(super) const DUMPABLE: &str = "ADIT_DUMPABLE";
/// `off`: leave the process what it could do when it was started.
pub(super) const SANDBOX: &str = "ADIT_SANDBOX";
/// `off`: have no program in the kernel check mac1.
pub(super) const MAC1_FILTER: &str = "ADIT_MAC1_FILTER";
/// How many workers there are.
pub(super) const THREADS: &str = "ADIT_THREADS";
/// Microseconds for which a worker looks before it sleeps.
pub(super) const SPIN_US: &str = "ADIT_SPIN_US";
/// The processors that the workers are pinned to.
pub(super) const CPUS: &str = "ADIT_CPUS";
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
    /// Whether there is to be a sandbox, if it can be understood.
    pub(super) sandbox: Result<Option<bool>, EnvironmentError>,
    /// Whether mac1 is to be checked in the kernel, too, if it can be understood.
    pub(super) mac1_filter: Result<Option<bool>, EnvironmentError>,
    /// These five, if they can be understood. What the command line says counts instead.
    pub(super) log_format: Result<Option<LogForm>, EnvironmentError>,
    pub(super) metrics: Result<Option<SocketAddr>, EnvironmentError>,
    pub(super) threads: Result<Option<usize>, EnvironmentError>,
    pub(super) spin: Result<Option<Duration>, EnvironmentError>,
    pub(super) processors: Result<Option<Vec<usize>>, EnvironmentError>,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EnvironmentError {
    NotADescriptor {
        variable: &'static str,
        value: OsString,
    },
    SameDescriptor(RawFd),
    /// `remedy` says what would be understood.
    NotASetting {
        variable: &'static str,
        value: OsString,
        remedy: String,
    },
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
            Self::NotASetting { variable, value, remedy } => {
                write!(f, "{variable}={value:?} cannot be used: {remedy}, or unset it")
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
            sandbox: setting(set, SANDBOX, switch),
            mac1_filter: setting(set, MAC1_FILTER, switch),
            log_format: setting(set, LOG_FORMAT, LogForm::parse),
            metrics: setting(set, METRICS, metrics::address),
            threads: setting(set, THREADS, workers::threads),
            spin: setting(set, SPIN_US, workers::spin),
            processors: setting(set, CPUS, workers::processors),
            numbers: Numbers::read(set),
        }
    }
}

/// Reads `on` or `off`. Fails with what to give instead.
fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("give on or off".to_owned()),
    }
}

/// A variable that `parse` understands, or says what it would.
fn setting<T>(
    set: impl Fn(&str) -> Option<OsString>,
    variable: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, EnvironmentError> {
    // Text that is no text becomes something that no setting allows.
    let parsed = |value: OsString| {
        parse(&value.to_string_lossy()).map_err(|remedy| EnvironmentError::NotASetting { variable, value, remedy })
    };
    set(variable).map(parsed).transpose()
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
            sandbox: Ok(None),
            mac1_filter: Ok(None),
            log_format: Ok(None),
            metrics: Ok(None),
            threads: Ok(None),
            spin: Ok(None),
            processors: Ok(None),
            numbers: Ok(Numbers::default()),
        };
        assert_eq!(nothing, expected);
        assert_eq!(
            read(&[(TUN_FD, ""), (LOG_LEVEL, ""), (FOREGROUND, ""), (THREADS, ""), (SPIN_US, ""), (CPUS, "")]),
            nothing
        );
        assert_eq!(read(&[(LOG_FORMAT, ""), (METRICS, ""), (SANDBOX, ""), (MAC1_FILTER, "")]), nothing);
        assert_eq!(read(&[(FOREGROUND, "true"), (DUMPABLE, "0")]), nothing);
        let all = [
            (FOREGROUND, "1"),
            (LOG_LEVEL, "verbose"),
            (DUMPABLE, "1"),
            (TUN_FD, "3"),
            (UAPI_FD, "4"),
            (READY_FD, "5"),
            (NOTIFY_SOCKET, "@x"),
            (THREADS, "3"),
            (SPIN_US, "0"),
            (CPUS, "1,0"),
            (SANDBOX, "off"),
            (MAC1_FILTER, "on"),
            (LOG_FORMAT, "json"),
            (METRICS, "[::1]:9586"),
        ];
        let expected = Environment {
            foreground: true,
            log_level: Some("verbose".into()),
            dumpable: true,
            notify_socket: Some("@x".into()),
            sandbox: Ok(Some(false)),
            mac1_filter: Ok(Some(true)),
            log_format: Ok(Some(LogForm::Json)),
            metrics: Ok(Some(SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 9586)))),
            threads: Ok(Some(3)),
            spin: Ok(Some(Duration::ZERO)),
            processors: Ok(Some(vec![1, 0])),
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

    #[test]
    fn settings_that_cannot_be_meant() {
        let check = |result: Result<(), EnvironmentError>, expected: &str| {
            assert_eq!(result.unwrap_err().to_string(), expected);
        };
        check(
            read(&[(THREADS, "0")]).threads.map(drop),
            "ADIT_THREADS=\"0\" cannot be used: give a number of threads from 1 to 16, or unset it",
        );
        check(
            read(&[(SPIN_US, "1ms")]).spin.map(drop),
            "ADIT_SPIN_US=\"1ms\" cannot be used: give microseconds from 0 (off) to 1000, or unset it",
        );
        check(
            read(&[(CPUS, "all")]).processors.map(drop),
            "ADIT_CPUS=\"all\" cannot be used: give a list of processors such as 0,2-3, or unset it",
        );
        check(
            read(&[(METRICS, "9586")]).metrics.map(drop),
            "ADIT_METRICS=\"9586\" cannot be used: give an address and a port such as 127.0.0.1:9586 or [::1]:9586, or \
             unset it",
        );
        check(
            read(&[(LOG_FORMAT, "xml")]).log_format.map(drop),
            "ADIT_LOG_FORMAT=\"xml\" cannot be used: give text or json, or unset it",
        );
        check(
            read(&[(SANDBOX, "0")]).sandbox.map(drop),
            "ADIT_SANDBOX=\"0\" cannot be used: give on or off, or unset it",
        );
        check(
            read(&[(MAC1_FILTER, "no")]).mac1_filter.map(drop),
            "ADIT_MAC1_FILTER=\"no\" cannot be used: give on or off, or unset it",
        );
        let not_text = <OsString as std::os::unix::ffi::OsStringExt>::from_vec(b"1\xff".to_vec());
        let environment = Environment::read(|name| (name == THREADS).then(|| not_text.clone()));
        assert!(matches!(environment.threads, Err(EnvironmentError::NotASetting { value, .. }) if value == not_text));
    }

    #[test]
    fn words_of_a_switch() {
        assert_eq!((switch("on"), switch("off")), (Ok(true), Ok(false)));
        for text in ["", "0", "1", "OFF", "no"] {
            assert_eq!(switch(text), Err("give on or off".to_owned()), "{text}");
        }
    }
}
