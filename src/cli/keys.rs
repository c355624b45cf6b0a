//! `genkey`, `genpsk` and `pubkey`, as wg(8) has them: keys in base64 on standard input and output.
//!
//! Differs from wg: what could not be written is an error (a full disk does not give an empty key
//! file and success), and a NUL after the key is a trailing character like any other.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use getrandom::SysRng;
use rand_core::UnwrapErr;
use zeroize::Zeroizing;

use super::arguments::KeyCommand;
use crate::key::{BASE64_LEN, PresharedKey, PrivateKey};

/// Permission bits of everybody who is neither the owner nor in the group.
const OTHERS: u32 = 0o007;

/// Why there is no key.
#[derive(Debug)]
pub(super) enum KeyError {
    Read(io::Error),
    Write(io::Error),
    Trailing,
    Format,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "Reading the key failed: {error}"),
            Self::Write(error) => write!(f, "Writing the key failed: {error}"),
            Self::Trailing => f.write_str("Trailing characters found after key"),
            Self::Format => f.write_str("Key is not the correct length or format"),
        }
    }
}

/// Carries `command` out on the standard streams.
pub(super) fn run(command: KeyCommand) -> Result<(), KeyError> {
    let stdout = io::stdout();
    let line = match command {
        KeyCommand::GenKey => {
            warn_if_world_accessible(&stdout);
            PrivateKey::generate(&mut UnwrapErr(SysRng)).to_base64()
        }
        KeyCommand::GenPsk => {
            warn_if_world_accessible(&stdout);
            PresharedKey::generate(&mut UnwrapErr(SysRng)).to_base64()
        }
        KeyCommand::PubKey => Zeroizing::new(read_private(io::stdin().lock())?.public_key().to_string()),
    };
    let mut stdout = stdout.lock();
    stdout
        .write_all(line.as_bytes())
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush())
        .map_err(KeyError::Write)
}

/// A secret that goes to a file which others may open deserves a word. It is written all the same.
fn warn_if_world_accessible(output: &impl AsFd) {
    let metadata = output.as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    if metadata.is_ok_and(|metadata| metadata.is_file() && metadata.mode() & OTHERS != 0) {
        eprintln!("Warning: writing to world accessible file.");
        eprintln!("Consider setting the umask to 077 and trying again.");
    }
}

/// Exactly one key, then at most white space until the end.
fn read_private(mut input: impl Read) -> Result<PrivateKey, KeyError> {
    let mut text = Zeroizing::new([0; BASE64_LEN]);
    match input.read_exact(&mut text[..]) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(KeyError::Format),
        Err(error) => return Err(KeyError::Read(error)),
    }
    let mut rest = Zeroizing::new([0; BASE64_LEN]);
    loop {
        match input.read(&mut rest[..]) {
            Ok(0) => break,
            Ok(len) if rest[..len].iter().all(u8::is_ascii_whitespace) => {}
            Ok(_) => return Err(KeyError::Trailing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(KeyError::Read(error)),
        }
    }
    let text = std::str::from_utf8(&text[..]).map_err(|_| KeyError::Format)?;
    PrivateKey::from_base64(text).map_err(|_| KeyError::Format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_key() {
        let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let check = |text: String, expected: Result<(), &str>| {
            let result = read_private(text.as_bytes()).map(|_| ()).map_err(|error| error.to_string());
            assert_eq!(result, expected.map_err(str::to_owned), "{text:?}");
        };
        let format = Err("Key is not the correct length or format");
        let trailing = Err("Trailing characters found after key");
        check(key.to_owned(), Ok(()));
        check(format!("{key}\n"), Ok(()));
        check(format!("{key} \t\r\n{}", "\n".repeat(1000)), Ok(()));
        check(String::new(), format);
        check("\n".to_owned(), format);
        check(key[..43].to_owned(), format);
        check(key.replace('=', "A"), format);
        check(key.replace("A=", "B="), format);
        check(format!("{}é", &key[..42]), format);
        check(format!(" {key}"), trailing);
        check(format!("{key} x"), trailing);
        check(format!("{key}\0"), trailing);
        check(format!("{key}{}x", " ".repeat(500)), trailing);
    }
}
