//! One interface, from its making to its end.
use super::arguments::DaemonArguments;
use std::ffi::OsString;
use std::process::ExitCode;
pub(super) fn main(_arguments: DaemonArguments, _words: &[OsString]) -> ExitCode {
    ExitCode::FAILURE
}
