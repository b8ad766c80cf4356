//! One function per command. Each builds requests, sends them, and writes what came back.

pub(super) mod about;
pub(super) mod backup;
pub(super) mod claims;
pub(super) mod config;
pub(super) mod dev;
pub(super) mod edit;
mod etcd;
pub(super) mod history;
pub(super) mod lease;
pub(super) mod member;
mod pages;
mod prompt;
pub(super) mod ratelimit;
pub(super) mod read;
pub(super) mod recover;
pub(super) mod serve;
pub(super) mod status;
pub(super) mod transfer;
pub(super) mod txn;
pub(super) mod watch;
pub(super) mod write;

use super::args::Verbatim;
use super::exit::CliError;

/// What `KEY`, `--prefix P` and `P --prefix` come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chosen<'a> {
    Key(&'a [u8]),
    Prefix(&'a [u8]),
}

fn chosen<'a>(key: Option<&'a Verbatim>, prefix: Option<&'a Option<Verbatim>>) -> Result<Chosen<'a>, CliError> {
    match (key, prefix) {
        (Some(key), None) => Ok(Chosen::Key(&key.0)),
        (None, Some(Some(prefix))) | (Some(prefix), Some(None)) => Ok(Chosen::Prefix(&prefix.0)),
        (Some(_), Some(Some(_))) => Err(CliError::Usage("give a key or a prefix, not both".to_owned())),
        (None, Some(None)) => Err(CliError::Usage("--prefix needs a prefix".to_owned())),
        (None, None) => Err(CliError::Usage("give a key or --prefix".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_stands_on_either_side() {
        let text = Verbatim(b"app/".to_vec());
        assert_eq!(chosen(Some(&text), None).unwrap(), Chosen::Key(b"app/"));
        assert_eq!(chosen(Some(&text), Some(&None)).unwrap(), Chosen::Prefix(b"app/"));
        assert_eq!(chosen(None, Some(&Some(text.clone()))).unwrap(), Chosen::Prefix(b"app/"));
        for (key, prefix) in [(Some(&text), Some(&Some(text.clone()))), (None, Some(&None)), (None, None)] {
            assert_eq!(chosen(key, prefix).unwrap_err().exit_code(), 2);
        }
    }
}
