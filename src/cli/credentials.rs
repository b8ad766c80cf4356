//! Who the command line asks as: from flags, variables, the context, a file, or a question at the terminal.
//!
//! Invariants: a password is asked for on the terminal itself and not shown there, so that standard input and
//! output stay the command's; the terminal is as it was afterwards; no message shows a password or token.

use super::args::Global;
use super::exit::CliError;
use crate::client::Credentials;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// More than the server takes.
const PASSWORD_BYTES_MAX: u64 = 4 << 10;
const TERMINAL: &str = "/dev/tty";
const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const ERASE_LINE: u8 = 0x15;
/// As a shell has it for SIGINT.
const INTERRUPTED: u8 = 130;

/// Flags and variables, else the context. With `--curl` no password is asked for, since none is printed.
pub(super) fn of(
    global: &Global,
    context_user: Option<&str>,
    context_file: Option<PathBuf>,
) -> Result<Credentials, CliError> {
    let ambiguous = |what: &str| Err(CliError::Usage(format!("{what} are both given: say one of them")));
    if let Some(token) = &global.token {
        return match (&global.user, &global.password_file) {
            (Some(_), _) => ambiguous("--user (TENURE_USER) and --token (TENURE_TOKEN)"),
            (None, Some(_)) => ambiguous("--password-file (TENURE_PASSWORD_FILE) and a token"),
            (None, None) => Ok(Credentials::token(&token.0)?),
        };
    }
    let (user, file) = match &global.user {
        Some(user) => (user.0.as_str(), global.password_file.clone()),
        None => match context_user {
            Some(user) => (user, global.password_file.clone().or(context_file)),
            None if global.password_file.is_some() => {
                return Err(CliError::Usage("--password-file (TENURE_PASSWORD_FILE) takes a --user".to_owned()));
            }
            None => return Ok(Credentials::default()),
        },
    };
    if user.contains(':') && file.is_some() {
        return ambiguous("--password-file (TENURE_PASSWORD_FILE) and a password");
    }
    if global.curl {
        return Ok(Credentials::named(name(user)));
    }
    let (name, password) = login(user, file.as_deref(), "--password-file FILE, or as --user NAME:PASSWORD")?;
    Ok(Credentials::password(&name, &password)?)
}

fn name(user: &str) -> &str {
    user.split_once(':').map_or(user, |(name, _)| name)
}

/// Name and password of `NAME[:PASSWORD]`; the password from the file, or from who sits at the terminal.
pub(super) fn login(user: &str, file: Option<&Path>, instead: &str) -> Result<(String, String), CliError> {
    if name(user).is_empty() {
        return Err(CliError::Usage("a user is NAME or NAME:PASSWORD, and the name is not empty".to_owned()));
    }
    let password = match (user.split_once(':'), file) {
        (Some((_, password)), _) => password.to_owned(),
        (None, Some(file)) => from_file(file)?,
        (None, None) => asked(user, instead)?,
    };
    Ok((name(user).to_owned(), password))
}

fn from_file(path: &Path) -> Result<String, CliError> {
    let shown = path.display().to_string();
    let wrong = |error: std::io::Error| CliError::io(&shown, &error);
    let mut bytes = Vec::new();
    File::open(path).map_err(wrong)?.take(PASSWORD_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(wrong)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > PASSWORD_BYTES_MAX {
        return Err(CliError::Usage(format!("{shown} has more than a password")));
    }
    let text = String::from_utf8(bytes).map_err(|_| CliError::Usage(format!("{shown} is not UTF-8 text")))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

fn asked(user: &str, instead: &str) -> Result<String, CliError> {
    let Ok(mut terminal) = File::options().read(true).write(true).open(TERMINAL) else {
        return Err(CliError::Usage(format!(
            "there is no terminal to ask for the password of {user:?} at: give it by {instead}"
        )));
    };
    let wrong = |error: std::io::Error| CliError::io(TERMINAL, &error);
    write!(terminal, "password of {}: ", user.escape_debug()).map_err(wrong)?;
    let quiet = Quiet::begin(&terminal).map_err(|error| wrong(error.into()))?;
    let typed = line(&mut &terminal);
    drop(quiet);
    terminal.write_all(b"\n").map_err(wrong)?;
    let typed = typed.map_err(wrong)?.ok_or(CliError::Told(INTERRUPTED))?;
    String::from_utf8(typed).map_err(|_| CliError::Usage("the password is not UTF-8 text".to_owned()))
}

/// What is typed until Return; `None` if the terminal's user gives up.
fn line(terminal: &mut impl std::io::Read) -> std::io::Result<Option<Vec<u8>>> {
    let (mut typed, mut byte) = (Vec::new(), [0]);
    loop {
        if terminal.read(&mut byte)? == 0 {
            return Ok(None);
        }
        match byte[0] {
            b'\r' | b'\n' => return Ok(Some(typed)),
            INTERRUPT | END => return Ok(None),
            ERASE_LINE => typed.clear(),
            0x08 | 0x7f => {
                // A character may be several bytes.
                while typed.pop().is_some_and(|last| last & 0xc0 == 0x80) {}
            }
            other if u64::try_from(typed.len()).is_ok_and(|length| length < PASSWORD_BYTES_MAX) => typed.push(other),
            _ => {}
        }
    }
}

/// A terminal that shows nothing and interprets nothing, so that an interrupt, too, leaves it as it was.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn begin(terminal: &'a File) -> rustix::io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG;
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no mending.
        tcsetattr(self.terminal, OptionalActions::Flush, &self.before).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_edited_as_at_a_terminal() {
        let read = |bytes: &[u8]| line(&mut &bytes[..]).unwrap().map(|typed| String::from_utf8(typed).unwrap());
        assert_eq!(read(b"secret\r").as_deref(), Some("secret"));
        assert_eq!(read("sü\u{7f}ecx\u{8}ret\n".as_bytes()).as_deref(), Some("secret"));
        assert_eq!(read(b"wrong\x15right\n").as_deref(), Some("right"));
        assert_eq!(read(b"\x7f\n").as_deref(), Some(""));
        for given_up in [&b"sec\x03"[..], b"\x04", b"never ended"] {
            assert_eq!(read(given_up), None);
        }
    }

    #[test]
    fn a_password_is_in_the_text_or_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "p:w \r\n").unwrap();
        let pair = |name: &str, password: &str| (name.to_owned(), password.to_owned());
        assert_eq!(login("ann:a:b", None, "").unwrap(), pair("ann", "a:b"));
        assert_eq!(login("ann:", None, "").unwrap(), pair("ann", ""));
        assert_eq!(login("ann", Some(&file), "").unwrap(), pair("ann", "p:w "));
        let wrong = login(":canary", None, "").unwrap_err();
        assert!(wrong.exit_code() == 2 && !wrong.to_string().contains("canary"), "{wrong}");
        std::fs::write(&file, vec![b'x'; 5 << 10]).unwrap();
        assert!(login("ann", Some(&file), "").unwrap_err().to_string().contains("more than a password"));
        assert!(login("ann", Some(&dir.path().join("none")), "").unwrap_err().to_string().contains("none"));
    }
}
