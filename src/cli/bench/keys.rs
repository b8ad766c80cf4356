//! Which key an operation uses.

use crate::cli::exit::CliError;
use crate::model::KeyRange;
use bytes::Bytes;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// `count` keys of one length: a prefix and a number padded with zeros.
#[derive(Debug)]
pub(super) struct Keyspace {
    prefix: String,
    digits: usize,
    count: u64,
    next: AtomicU64,
}

impl Keyspace {
    pub(super) fn new(prefix: &str, key_size: u64, count: u64) -> Result<Self, CliError> {
        let key_size = usize::try_from(key_size).unwrap_or(usize::MAX);
        let needed = (count - 1).to_string().len();
        let digits = key_size.checked_sub(prefix.len()).filter(|digits| *digits >= needed).ok_or_else(|| {
            CliError::Usage(format!("--key-size {key_size} cannot hold {prefix:?} and {needed} digits"))
        })?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_');
        if !prefix.bytes().all(plain) || prefix.contains("//") || prefix.starts_with('/') {
            return Err(CliError::Usage("--key-prefix takes letters, digits, '-', '_' and single slashes".to_owned()));
        }
        Ok(Self { prefix: prefix.to_owned(), digits, count, next: AtomicU64::new(0) })
    }

    pub(super) fn sequential(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) % self.count
    }

    pub(super) fn random(&self, rng: &mut Rng) -> u64 {
        rng.next() % self.count
    }

    pub(super) fn rewind(&self) {
        self.next.store(0, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// All keys.
    pub(super) fn range(&self) -> KeyRange {
        KeyRange::prefix(self.prefix.clone())
    }

    pub(super) fn bytes(&self, number: u64) -> Bytes {
        let mut key = Vec::with_capacity(self.prefix.len() + self.digits);
        self.write(number, &mut key);
        key.into()
    }

    pub(super) fn write(&self, number: u64, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail.
        write!(out, "{}{number:0width$}", self.prefix, width = self.digits).ok();
    }
}

/// SplitMix64: a few instructions a number, and no quality beyond an even spread is needed here.
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_asked_length_and_order() {
        let keys = Keyspace::new("b/", 10, 3).unwrap();
        let written: Vec<String> = (0..4)
            .map(|_| {
                let mut key = Vec::new();
                keys.write(keys.sequential(), &mut key);
                String::from_utf8(key).unwrap()
            })
            .collect();
        assert_eq!(written, ["b/00000000", "b/00000001", "b/00000002", "b/00000000"]);
        assert!(Keyspace::new("b/", 8, 1_000_000).is_ok());
        assert!(Keyspace::new("b/", 8, 1_000_001).is_err());
        assert!(Keyspace::new("b b", 32, 1).is_err());
    }

    #[test]
    fn random_numbers_repeat_by_seed_and_spread() {
        let keys = Keyspace::new("b/", 32, 10).unwrap();
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            (0..1000).map(|_| keys.random(&mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        for wanted in 0..10 {
            let hits = draw(7).iter().filter(|number| **number == wanted).count();
            assert!((60..140).contains(&hits), "{wanted}: {hits}");
        }
    }
}
