//! Fuzz body: the sidecar's file. No text panics; mistakes are bounded and have places in it; the same text means the
//! same; and no secret of it is told in an error, in a warning or by `Debug`.

use std::io;
use std::path::Path;

use adit::proxy::config::remark::{ERRORS_MAX, WARNINGS_MAX};
use adit::proxy::config::{Config, ConfigError, Environment, Place};
use adit::proxy::reload;

/// Keys that occur in the seeds, and in what is made from them: no message may have them.
const SECRETS: [&str; 3] = [
    "YAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk",
    "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak",
    "correct-horse-battery",
];

/// Takes `data` as the file, if it is text.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let variables = [("FUZZ_KEY", SECRETS[0]), ("ADIT_PEER_2_PERSISTENTKEEPALIVE", "25")];
    let environment = Environment::new(variables.map(|(name, value)| (name.into(), value.into())));
    let read = |_: &Path| Err(io::Error::from(io::ErrorKind::NotFound));
    let parse = || Config::parse(text, Path::new("/a.conf"), &environment, &read);
    let (first, second) = (parse(), parse());
    let told = match (&first, &second) {
        (Ok(config), Ok(again)) => {
            // What is read anew without a change asks for none.
            let changes = reload::services(&config.services, &again.services);
            assert!(changes.begin.is_empty() && changes.end.is_empty(), "{changes:?}");
            assert!(reload::needs_restart(config, again).is_empty());
            assert!(config.warnings.len() <= WARNINGS_MAX);
            format!("{config:?}")
        }
        (Err(error), Err(again)) => {
            assert_eq!(error.to_string(), again.to_string());
            assert!(!error.errors.is_empty(), "an error says what it is");
            bounded(error, text);
            format!("{error:?}{error}")
        }
        _ => panic!("the same text means the same"),
    };
    // Only where it stands for a secret: a name or a comment that is the same text is nobody's.
    for secret in SECRETS {
        let is_secret = text.lines().filter(|line| line.contains(secret)).all(|line| {
            let key = line.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
            matches!(key.as_str(), "privatekey" | "presharedkey" | "password") && line.matches('=').count() <= 2
        });
        assert!(!is_secret || !told.contains(secret), "a secret was told: {told}");
    }
}

fn bounded(error: &ConfigError, text: &str) {
    assert!(error.errors.len() <= ERRORS_MAX && error.warnings.len() <= WARNINGS_MAX);
    let lines = text.lines().count().max(1);
    for remark in error.errors.iter().chain(&error.warnings) {
        if let Place::File { line, column, .. } = &remark.place {
            assert!((1..=lines + 1).contains(line) && *column >= 1, "{remark:?} of {lines} lines");
        }
    }
}
