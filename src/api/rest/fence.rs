//! `Tenure-Fence: name=token`: the claims that a write demands, to be checked where it is applied.

use super::query::percent_decode;
use crate::api::call::Call;
use crate::api::problem::Problem;
use crate::api::routes::Operation;
use crate::model::limits::{FENCES_MAX, NAME_BYTES_MAX, REVISION_MAX};
use crate::model::{ClaimKind, ClaimName, Fence, Revision};

pub(crate) const TENURE_FENCE: &str = "tenure-fence";

/// True of a change that is no write to the store, so that no claim is looked at where it takes effect.
fn is_elsewhere(operation: Operation) -> bool {
    use Operation::*;
    matches!(
        operation,
        LeaseKeepalive
            | LeaseHold
            | MemberAdd
            | MemberPatch
            | MemberRemove
            | MemberPromote
            | MemberReplace
            | LeaderMove
            | Restore
    )
}

/// The fences of a request. One that would be ignored is refused.
pub(crate) fn of(call: &Call) -> Result<Vec<Fence>, Problem> {
    let values = call.parts.headers.get_all(TENURE_FENCE);
    let mut fences = Vec::new();
    for value in values {
        let text = value.to_str().map_err(|_| malformed("it is not visible ASCII"))?;
        fences.extend(text.split(',').map(|part| parse(part.trim())).collect::<Result<Vec<_>, _>>()?);
    }
    if !fences.is_empty() && (is_elsewhere(call.operation) || !call.operation.mutates()) {
        return Err(Problem::parameter(TENURE_FENCE, "only a write to the store can be fenced"));
    }
    if fences.len() > FENCES_MAX {
        return Err(Problem::parameter(TENURE_FENCE, format!("at most {FENCES_MAX} fences guard one write")));
    }
    Ok(fences)
}

/// For an operation that makes no use of fences.
pub(crate) fn refuse(call: &Call) -> Result<(), Problem> {
    of(call).map(|_| ())
}

fn malformed(why: &str) -> Problem {
    Problem::parameter(TENURE_FENCE, format!("`Tenure-Fence` is `name=token`; {why}"))
        .hint("percent-encode a name's `,`, `%` and what is not ASCII; `sem:` and `election:` go in front of other names than a lock's")
}

fn parse(text: &str) -> Result<Fence, Problem> {
    let (name, token) = text.rsplit_once('=').ok_or_else(|| malformed("there is no `=`"))?;
    let token = token.parse().ok().filter(|token| is_token(*token));
    let token = token.ok_or_else(|| malformed("the token is not a revision"))?;
    let kinds = [("lock:", ClaimKind::Lock), ("sem:", ClaimKind::Semaphore), ("election:", ClaimKind::Election)];
    let named = kinds.iter().find_map(|(prefix, kind)| Some((*kind, name.strip_prefix(prefix)?)));
    let (kind, name) = named.unwrap_or((ClaimKind::Lock, name));
    let name = percent_decode(name).and_then(|bytes| String::from_utf8(bytes).ok());
    let name = name.ok_or_else(|| malformed("the name is not percent-encoded UTF-8"))?;
    Ok(Fence { of: ClaimName::new(kind, checked_name(TENURE_FENCE, name)?), token })
}

/// A claim's token is the revision that began it.
pub(super) fn is_token(token: Revision) -> bool {
    (1..=REVISION_MAX).contains(&token)
}

/// A name of a lock, semaphore or election.
pub(crate) fn checked_name(parameter: &str, name: String) -> Result<String, Problem> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let rule = format!("a name has 1 to {NAME_BYTES_MAX} bytes of UTF-8 and no control characters");
        return Err(Problem::parameter(parameter, rule));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_their_kind_and_tokens_stand_behind_the_last_equals_sign() {
        let table = [
            ("deploy=1234", ClaimKind::Lock, "deploy", 1234),
            ("lock:sem:x=7", ClaimKind::Lock, "sem:x", 7),
            ("sem:builders=9", ClaimKind::Semaphore, "builders", 9),
            ("election:a=b=3", ClaimKind::Election, "a=b", 3),
            ("a%2Fb%2C%C3%A4=5", ClaimKind::Lock, "a/b,ä", 5),
        ];
        for (text, kind, name, token) in table {
            assert_eq!(parse(text).unwrap(), Fence { of: ClaimName::new(kind, name), token }, "{text}");
        }
        for text in [
            "",
            "deploy",
            "deploy=",
            "deploy=x",
            "deploy=0",
            "deploy=-1",
            "deploy=9007199254740992",
            "=5",
            "sem:=5",
            "a%zz=5",
            "%00=5",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
