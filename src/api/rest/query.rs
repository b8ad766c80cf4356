//! Query strings, strictly: every operation declares its names; an unknown one is refused with a
//! suggestion, a repeated one too, and a value that does not fit names its parameter.

use crate::api::problem::Problem;
use crate::model::Revision;
use crate::model::limits::REVISION_MAX;
use std::time::Duration;

/// The names of one operation. `later` are of the contract, but not of this version.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) allowed: &'static [&'static [&'static str]],
    pub(crate) later: &'static [&'static str],
}

#[derive(Debug, Default)]
pub(crate) struct Query {
    /// `None` is a bare name, without `=`.
    pairs: Vec<(String, Option<Vec<u8>>)>,
}

impl Query {
    pub(crate) fn parse(raw: Option<&str>, names: &Names) -> Result<Self, Problem> {
        Self::parse_repeating(raw, names, &[])
    }

    /// As `parse`, where some names may be given more than once.
    pub(crate) fn parse_repeating(raw: Option<&str>, names: &Names, repeatable: &[&str]) -> Result<Self, Problem> {
        let mut query = Self::default();
        let Some(raw) = raw else { return Ok(query) };
        for part in raw.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (part, None),
            };
            let name = form_decode(name).and_then(|name| String::from_utf8(name).ok());
            let name =
                name.ok_or_else(|| Problem::parameter(part, "a parameter's name is not valid percent-encoded UTF-8"))?;
            if names.later.contains(&&*name) {
                return Err(Problem::not_yet(&name));
            }
            if !names.allowed.iter().any(|group| group.contains(&&*name)) {
                return Err(unknown(&name, names.allowed.iter().copied().flatten().copied()));
            }
            if !repeatable.contains(&&*name) && query.pairs.iter().any(|(known, _)| *known == name) {
                return Err(Problem::parameter(&name, format!("`{name}` is given more than once")));
            }
            let value = match value {
                Some(value) => Some(
                    form_decode(value)
                        .ok_or_else(|| Problem::parameter(&name, format!("`{name}` has a malformed percent escape")))?,
                ),
                None => None,
            };
            query.pairs.push((name, value));
        }
        Ok(query)
    }

    fn find(&self, name: &str) -> Option<&Option<Vec<u8>>> {
        self.pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The value's bytes; those of a bare name are empty.
    pub(crate) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.find(name).map(|value| value.as_deref().unwrap_or_default())
    }

    /// Every value of a name that may be repeated, in the order given.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let named = self.pairs.iter().filter(move |(known, _)| known == name);
        named.map(|(_, value)| value.as_deref().unwrap_or_default())
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, Problem> {
        let Some(bytes) = self.bytes(name) else { return Ok(None) };
        let text = std::str::from_utf8(bytes);
        text.map(Some).map_err(|_| Problem::parameter(name, format!("`{name}` is not UTF-8")))
    }

    /// True if given bare or as `true`; false if absent or `false`.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Problem> {
        Ok(self.maybe_flag(name)?.unwrap_or(false))
    }

    pub(crate) fn maybe_flag(&self, name: &str) -> Result<Option<bool>, Problem> {
        match self.find(name) {
            None => Ok(None),
            Some(None) => Ok(Some(true)),
            Some(Some(value)) => match &value[..] {
                b"true" => Ok(Some(true)),
                b"false" => Ok(Some(false)),
                _ => Err(Problem::parameter(name, format!("`{name}` is `true` or `false`"))),
            },
        }
    }

    pub(crate) fn int(&self, name: &str) -> Result<Option<i64>, Problem> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let value = text.parse().ok().filter(|_| !text.starts_with('+'));
        value.map(Some).ok_or_else(|| Problem::parameter(name, format!("`{name}` is not a 64-bit integer")))
    }

    pub(crate) fn revision(&self, name: &str) -> Result<Option<Revision>, Problem> {
        match self.int(name)? {
            Some(outside) if !(0..=REVISION_MAX).contains(&outside) => {
                Err(Problem::parameter(name, format!("`{name}` is a revision, from 0 to {REVISION_MAX}")))
            }
            revision => Ok(revision),
        }
    }

    /// A count of at least 1.
    pub(crate) fn count(&self, name: &str) -> Result<Option<u64>, Problem> {
        let Some(value) = self.int(name)? else { return Ok(None) };
        let count = u64::try_from(value).ok().filter(|count| *count > 0);
        count.map(Some).ok_or_else(|| Problem::parameter(name, format!("`{name}` is at least 1")))
    }

    pub(crate) fn duration(&self, name: &str) -> Result<Option<Duration>, Problem> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        parse_duration(text).map(Some).ok_or_else(|| not_a_duration(name))
    }

    pub(crate) fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<Option<T>, Problem> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        choose(name, text, choices).map(Some)
    }

    /// Name and value pairs that say the same in any order; not those that only concern the way of answering.
    pub(crate) fn canonical(&self) -> Vec<(&str, &[u8])> {
        let mut pairs: Vec<(&str, &[u8])> = self
            .pairs
            .iter()
            .filter(|(name, _)| name != "timeout" && name != "pretty")
            .map(|(name, value)| (&**name, value.as_deref().unwrap_or(b"true")))
            .collect();
        pairs.sort_unstable();
        pairs
    }
}

pub(crate) fn not_a_duration(name: &str) -> Problem {
    Problem::parameter(name, format!("`{name}` is a duration like 500ms, 30s, 5m or 24h, or whole seconds"))
}

pub(crate) fn choose<T: Copy>(name: &str, text: &str, choices: &[(&str, T)]) -> Result<T, Problem> {
    match choices.iter().find(|(choice, _)| *choice == text) {
        Some((_, value)) => Ok(*value),
        None => {
            let all: Vec<_> = choices.iter().map(|(choice, _)| format!("`{choice}`")).collect();
            Err(Problem::parameter(name, format!("`{name}` is one of {}", all.join(", "))))
        }
    }
}

/// The refusal of an unknown name, with the nearest known one if it is near.
pub(crate) fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Problem {
    let problem = Problem::parameter(name, format!("`{name}` is not known here"));
    match nearest(name, known) {
        Some(suggestion) => problem.hint(format!("did you mean `{suggestion}`?")).text("suggestion", suggestion),
        None => problem,
    }
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A hostile name must not cost the square of its length.
    if name.len() > 64 {
        return None;
    }
    let allowed = (name.chars().count() / 3).clamp(1, 3);
    known
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let substituted = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substituted.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

/// Digits of one number in a duration: enough for 30 years in seconds.
const DURATION_DIGITS_MAX: usize = 9;

/// `500ms`, `30s`, `5m`, `24h`, `7d`, sequences such as `1h30m`, or whole seconds.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    if text.is_empty() {
        return None;
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let short = text.len() <= DURATION_DIGITS_MAX;
        return text.parse().ok().filter(|_| short).map(Duration::from_secs);
    }
    let mut rest = text;
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok().filter(|_| digits <= DURATION_DIGITS_MAX)?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit_ms: u64 = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        rest = &rest[letters..];
        total_ms = total_ms.checked_add(number.checked_mul(unit_ms)?)?;
    }
    Some(Duration::from_millis(total_ms))
}

/// Percent escapes as bytes, and `+` as space, as forms and `URLSearchParams` write it. `None` if an
/// escape is malformed.
fn form_decode(text: &str) -> Option<Vec<u8>> {
    if text.contains('+') { percent_decode(&text.replace('+', " ")) } else { percent_decode(text) }
}

/// Strict: `%` must be followed by two hexadecimal digits.
pub(crate) fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        bytes.extend_from_slice(&rest[..at]);
        let hex = |at: usize| char::from(*rest.get(at)?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(hex(at + 1)? << 4 | hex(at + 2)?);
        rest = &rest[at + 3..];
    }
    bytes.extend_from_slice(rest);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::problem::Around;
    use proptest::prelude::*;

    const NAMES: Names =
        Names { allowed: &[&["prefix", "limit", "keys_only", "wait"], &["timeout", "pretty"]], later: &["ttl"] };

    fn parse(raw: &str) -> Result<Query, Problem> {
        Query::parse(Some(raw), &NAMES)
    }

    fn text(problem: Problem) -> String {
        let around = Around { mutates: false, revision: None, request_id: "", pretty: false };
        String::from_utf8(problem.to_json(around)).unwrap()
    }

    #[test]
    fn a_typo_is_refused_with_a_suggestion() {
        for (typo, meant) in
            [("prefx=a", "prefix"), ("perfix=a", "prefix"), ("key_only", "keys_only"), ("limits=1", "limit")]
        {
            let problem = text(parse(typo).unwrap_err());
            assert!(problem.contains(&format!(r#""suggestion":"{meant}""#)), "{typo}: {problem}");
        }
        let problem = text(parse("zzz=1").unwrap_err());
        assert!(!problem.contains("suggestion"), "{problem}");
        assert!(!text(parse(&"p".repeat(100_000)).unwrap_err()).contains("suggestion"));
    }

    #[test]
    fn duplicates_escapes_and_names_of_later_versions_are_refused() {
        assert!(text(parse("limit=1&limit=1").unwrap_err()).contains("more than once"));
        for malformed in ["prefix=%", "prefix=%4", "prefix=%zz", "prefix=a%2", "%ff=1", "%zz"] {
            assert!(parse(malformed).is_err(), "{malformed}");
        }
        assert!(text(parse("ttl=5s").unwrap_err()).contains("not available in this version yet"));
    }

    #[test]
    fn only_what_may_be_repeated_is() {
        let query = Query::parse_repeating(Some("prefix=a&limit=1&prefix=&prefix"), &NAMES, &["prefix"]).unwrap();
        assert_eq!(query.all("prefix").collect::<Vec<_>>(), [&b"a"[..], b"", b""]);
        assert!(Query::parse_repeating(Some("limit=1&limit=1"), &NAMES, &["prefix"]).is_err());
    }

    #[test]
    fn values_are_decoded_to_bytes() {
        let query = parse("prefix=%ff%2F+a%2Bb&&keys_only").unwrap();
        assert_eq!(query.bytes("prefix"), Some(&b"\xff/ a+b"[..]));
        assert!(query.text("prefix").is_err());
        assert!(query.flag("keys_only").unwrap());
        assert!(!query.flag("pretty").unwrap());
        assert!(parse("keys_only=maybe").unwrap().flag("keys_only").is_err());
        assert!(!parse("keys_only=false").unwrap().flag("keys_only").unwrap());
    }

    #[test]
    fn numbers_name_their_parameter() {
        for number in ["99999999999999999999", "-1", "1.5", "", "+1", "0x1", "1e3"] {
            let problem =
                text(parse(&format!("limit={number}").replace('+', "%2B")).unwrap().count("limit").unwrap_err());
            assert!(problem.contains(r#""parameter":"limit""#), "{number}: {problem}");
        }
        for revision in ["-1", "9007199254740992"] {
            assert!(parse(&format!("limit={revision}")).unwrap().revision("limit").is_err(), "{revision}");
        }
        assert_eq!(parse("limit=9007199254740991").unwrap().revision("limit").unwrap(), Some(REVISION_MAX));
        assert_eq!(parse("limit=0").unwrap().count("limit").ok(), None);
        assert_eq!(parse("limit=7").unwrap().count("limit").unwrap(), Some(7));
    }

    #[test]
    fn durations() {
        let table = [
            ("500ms", Some(500)),
            ("30s", Some(30_000)),
            ("5m", Some(300_000)),
            ("24h", Some(86_400_000)),
            ("1h30m", Some(5_400_000)),
            ("7d", Some(604_800_000)),
            ("60", Some(60_000)),
            ("0", Some(0)),
            ("", None),
            ("s", None),
            ("1x", None),
            ("1.5s", None),
            ("-1s", None),
            ("1s2", None),
            ("99999999999999999999", None),
            ("1000000000", None),
            ("999999999999999999d", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn the_canonical_form_ignores_order_and_what_does_not_change_the_meaning() {
        let (a, b) = (parse("limit=1&prefix=a%2Fb&timeout=1s").unwrap(), parse("prefix=a/b&limit=1&pretty").unwrap());
        assert_eq!(a.canonical(), b.canonical());
        assert_ne!(a.canonical(), parse("prefix=a/b&limit=2").unwrap().canonical());
    }

    proptest! {
        #[test]
        fn any_bytes_survive_percent_encoding(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let encoded: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(percent_decode(&encoded), Some(bytes));
        }

        #[test]
        fn never_panics(raw in "[%&=+a-z0-9\u{e4}]{0,40}") {
            let _verdict = parse(&raw).map(|query| query.canonical().len());
            let _duration = parse_duration(&raw);
        }
    }
}
