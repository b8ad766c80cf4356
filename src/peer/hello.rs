//! The handshake: what each end says of itself and of the other when a stream opens, and the check.
//!
//! It travels in one header of every stream, and none outlives the process at either end, nor what the caller was told
//! of the peer. Invariant: a refusal says which of the facts differs, and what to do about it.

use crate::raft::{MemberId, Peer};
use std::fmt;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

/// Raised when members of two releases would misunderstand each other.
const PROTOCOL: u32 = 1;
const HEADER: &str = "tenure-peer";

/// Who a member is: which cluster it belongs to, its number, and which data directory it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: u64,
    pub node_id: MemberId,
    pub incarnation: u128,
}

impl Identity {
    /// Whom this member takes `peer` for. Incarnation 0 is not known yet.
    pub(super) fn expected(self, peer: &Peer) -> Self {
        Self { cluster_id: self.cluster_id, node_id: peer.id, incarnation: peer.member.incarnation }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}.{:x}", self.cluster_id, self.node_id, self.incarnation)
    }
}

/// Why the two ends do not belong together; said to both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) String);

impl Refusal {
    /// What answers there is not the peer protocol.
    pub(super) fn no_member() -> Self {
        let hint =
            "is one of the addresses a client port, or another program's? Members meet at the address of --listen-peer";
        Self(format!("the other end does not say who it is; {hint}"))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Both ends as the caller sees them, or the answering end as it sees itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) from: Identity,
    pub(super) to: Identity,
}

impl Hello {
    pub(super) fn header(&self) -> MetadataValue<Ascii> {
        let text = format!("{PROTOCOL};{};{}", self.from, self.to);
        text.parse().expect("digits, dots and semicolons are visible ASCII")
    }

    pub(super) fn write(header: &MetadataValue<Ascii>, metadata: &mut MetadataMap) {
        metadata.insert(HEADER, header.clone());
    }

    pub(super) fn read(metadata: &MetadataMap) -> Result<Self, Refusal> {
        let missing = Refusal::no_member;
        let text = metadata.get(HEADER).and_then(|value| value.to_str().ok()).ok_or_else(missing)?;
        let mut parts = text.split(';');
        let version = parts.next().unwrap_or_default();
        if version != PROTOCOL.to_string() {
            let hint = "upgrade the older member";
            return Err(Refusal(format!("peer protocol {version} meets protocol {PROTOCOL}; {hint}")));
        }
        let mut identity = || parts.next().and_then(identity).ok_or_else(missing);
        Ok(Self { from: identity()?, to: identity()? })
    }

    /// The receiving end's check. `known` is the caller's incarnation in the membership, 0 if unknown.
    pub(super) fn check(&self, me: Identity, known: u128) -> Result<(), Refusal> {
        let Self { from, to } = self;
        if from.cluster_id != me.cluster_id {
            let hint = "correct the peer URLs, or give the member that came last an empty data directory";
            return Err(Refusal(format!(
                "cluster id differs: member {:x} belongs to cluster {:x}, member {:x} to {:x}; {hint}",
                from.node_id, from.cluster_id, me.node_id, me.cluster_id
            )));
        }
        if to.node_id != me.node_id {
            let hint = "two members have exchanged their peer URLs, or one is registered with another's";
            return Err(Refusal(format!(
                "node id differs: member {:x} was called as member {:x}; {hint}",
                me.node_id, to.node_id
            )));
        }
        same_incarnation(me.node_id, me.incarnation, to.incarnation)?;
        same_incarnation(from.node_id, from.incarnation, known)
    }
}

fn same_incarnation(id: MemberId, own: u128, known: u128) -> Result<(), Refusal> {
    if own == known || known == 0 || own == 0 {
        return Ok(());
    }
    Err(Refusal(format!(
        "incarnation differs: member {id:x} runs on another data directory than the one it joined with; remove it and add it again, with an empty data directory, as a new member"
    )))
}

fn identity(text: &str) -> Option<Identity> {
    let mut parts = text.split('.');
    let mut number = || u128::from_str_radix(parts.next()?, 16).ok();
    let (cluster, node, incarnation) = (number()?, number()?, number()?);
    Some(Identity { cluster_id: u64::try_from(cluster).ok()?, node_id: u64::try_from(node).ok()?, incarnation })
}

#[cfg(test)]
mod tests {
    use super::*;

    const N1: Identity = Identity { cluster_id: 0xc, node_id: 1, incarnation: 0xa1 };
    const N2: Identity = Identity { cluster_id: 0xc, node_id: 2, incarnation: u128::MAX };

    #[test]
    fn what_is_written_is_read() {
        let hello = Hello { from: N1, to: N2 };
        let mut metadata = MetadataMap::new();
        Hello::write(&hello.header(), &mut metadata);
        assert_eq!(Hello::read(&metadata).unwrap(), hello);
        assert_eq!(hello.check(N2, N1.incarnation), Ok(()));
        assert_eq!(hello.check(N2, 0), Ok(()));
    }

    #[test]
    fn each_fact_that_differs_is_named() {
        let refused = |from, to, me, known| Hello { from, to }.check(me, known).unwrap_err().0;
        let other = Identity { cluster_id: 0xd, ..N1 };
        assert!(refused(other, N2, N2, 0).starts_with("cluster id differs"));
        assert!(refused(N1, N1, N2, 0).starts_with("node id differs"));
        let old = Identity { incarnation: 5, ..N2 };
        assert!(refused(N1, old, N2, 0).starts_with("incarnation differs: member 2"));
        assert!(refused(N1, N2, N2, 7).starts_with("incarnation differs: member 1"));
    }

    #[test]
    fn garbage_and_other_protocols_are_refused() {
        for text in ["", "1", "1;;", "1;a.b.c;", "1;1.2.3;g.1.1", "1;1.2;1.2", "2;1.2.3;1.2.3"] {
            let mut metadata = MetadataMap::new();
            metadata.insert(HEADER, text.parse().unwrap());
            assert!(Hello::read(&metadata).is_err(), "{text}");
        }
        assert!(Hello::read(&MetadataMap::new()).is_err());
    }
}
