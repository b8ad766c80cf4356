//! Whether all members have the same state: compared while they serve.
//!
//! Every member notes the hash of its state at each entry it applies. Now and then the leader names an
//! entry and asks everybody for the hash there. What a majority of the voters has is right; who has
//! something else is told so, stops serving, and takes a peer's state (`repair`). Without a majority
//! nobody can say who is right: writes are refused until one is there or an operator decides.
//! Invariants: hashes are compared at one log position only; one that is not known is no vote.

use super::apply::Applier;
use super::consensus::Consensus;
use super::network::{Call, Lane, Peer};
use super::types::MemberId;
use crate::model::{LogPosition, limits};
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tokio::sync::watch;

const COMPARE_EVERY: Duration = Duration::from_secs(2);
/// How long a member may take to apply the entry it is asked about.
const ANSWER: Duration = Duration::from_secs(1);

/// The hashes of the newest entries.
#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<VecDeque<(LogPosition, u128)>>);

impl Marks {
    pub(super) fn note(&self, at: LogPosition, hash: u128) {
        let mut marks = self.0.lock();
        if marks.len() == limits::STATE_MARKS_MAX {
            marks.pop_front();
        }
        marks.push_back((at, hash));
    }

    /// The state has been replaced: what was noted is of another.
    pub(super) fn begin(&self, at: Option<LogPosition>, hash: u128) {
        let mut marks = self.0.lock();
        marks.clear();
        marks.extend(at.map(|at| (at, hash)));
    }

    fn newest(&self) -> Option<(LogPosition, u128)> {
        self.0.lock().back().copied()
    }

    fn at(&self, at: LogPosition) -> Option<u128> {
        let marks = self.0.lock();
        let found = marks.binary_search_by_key(&at.index, |(noted, _)| noted.index).ok()?;
        marks.get(found).filter(|(noted, _)| *noted == at).map(|(_, hash)| *hash)
    }
}

/// What is known of this member's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing speaks against it.
    Sound,
    /// Members differ, and none of their states has a majority.
    Undecided,
    /// A majority has another state.
    Outvoted,
    /// It was, and has a peer's state now; or it was restarted before that was confirmed.
    Rebuilt,
}

impl Standing {
    /// Whether clients may see the state.
    #[must_use]
    pub fn may_serve(self) -> bool {
        matches!(self, Self::Sound | Self::Undecided)
    }

    #[must_use]
    pub fn may_write(self) -> bool {
        self == Self::Sound
    }

    fn after(self, verdict: &Verdict) -> Self {
        match (verdict, self) {
            (Verdict::Agreed { .. }, _) => Self::Sound,
            (Verdict::Outvoted { .. }, _) => Self::Outvoted,
            (Verdict::Undecided, Self::Sound) => Self::Undecided,
            (Verdict::Undecided, other) => other,
        }
    }
}

/// What a comparison comes to, for one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Verdict {
    /// Its state at this index is the majority's.
    Agreed {
        at: u64,
    },
    Undecided,
    Outvoted {
        /// Who has the majority's.
        sound: Vec<MemberId>,
    },
}

/// This member's part in the comparisons.
#[derive(Debug)]
pub(super) struct Agreement {
    standing: watch::Sender<Standing>,
    known: Mutex<Known>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Up to here its state was the majority's.
    pub(super) agreed: u64,
    pub(super) sound: Vec<MemberId>,
}

impl Agreement {
    pub(super) fn new(suspect: bool) -> Self {
        let standing = if suspect { Standing::Rebuilt } else { Standing::Sound };
        Self { standing: watch::Sender::new(standing), known: Mutex::default() }
    }

    pub(super) fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    pub(super) fn known(&self) -> Known {
        self.known.lock().clone()
    }

    /// It has a peer's state now.
    pub(super) fn rebuilt(&self) {
        self.standing.send_replace(Standing::Rebuilt);
    }

    fn take(&self, verdict: &Verdict) {
        let mut known = self.known.lock();
        match verdict {
            Verdict::Agreed { at } => known.agreed = known.agreed.max(*at),
            Verdict::Outvoted { sound } => known.sound.clone_from(sound),
            Verdict::Undecided => {}
        }
        let agreed = known.agreed;
        drop(known);
        let before = self.standing();
        let after = before.after(verdict);
        if before == after {
            return;
        }
        match after {
            Standing::Sound => tracing::info!(agreed, "this member's state is the majority's again"),
            Standing::Undecided => tracing::error!(
                agreed,
                "members have different states and none has a majority: writes are refused; bring the missing voters \
                 back, or remove the members whose state is wrong"
            ),
            Standing::Outvoted => tracing::error!(
                agreed,
                "this member's state is not the majority's: it stops serving and takes a peer's state"
            ),
            Standing::Rebuilt => {}
        }
        self.standing.send_replace(after);
    }
}

/// Who is right, by the hashes at one log position. Members that are not named are told nothing.
fn judge(at: u64, voters: &BTreeSet<MemberId>, hashes: &BTreeMap<MemberId, u128>) -> BTreeMap<MemberId, Verdict> {
    let mut groups: BTreeMap<u128, BTreeSet<MemberId>> = BTreeMap::new();
    for (id, hash) in hashes {
        groups.entry(*hash).or_default().insert(*id);
    }
    let majority = groups.values().find(|group| group.intersection(voters).count() > voters.len() / 2);
    let verdict = |id: &MemberId| match majority {
        Some(group) if group.contains(id) => Some(Verdict::Agreed { at }),
        Some(group) => Some(Verdict::Outvoted { sound: group.iter().copied().collect() }),
        None if groups.len() > 1 => Some(Verdict::Undecided),
        None => None,
    };
    hashes.keys().filter_map(|id| Some((*id, verdict(id)?))).collect()
}

impl Applier {
    /// The hash of the state at `at`, once that is applied here; `None` if it is not known (any more).
    async fn hash_at(&self, at: LogPosition) -> Option<u128> {
        let mut progress = self.watch();
        let applied = progress.wait_for(|progress| progress.covers(at.index));
        // Not applied in time is not known.
        tokio::time::timeout(ANSWER, applied).await.ok()?.ok()?;
        self.marks().at(at)
    }
}

impl Consensus {
    /// What is known of this member's state.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.link().agreement.standing()
    }

    pub(super) async fn state_hash_at(&self, at: LogPosition) -> Option<u128> {
        self.link().applier.hash_at(at).await
    }

    pub(super) fn take_verdict(&self, verdict: &Verdict) {
        self.link().agreement.take(verdict);
        let metrics = self.metrics();
        metrics.state_agreed_index.set(i64::try_from(self.link().agreement.known().agreed).unwrap_or(i64::MAX));
        metrics.corrupt.set(i64::from(self.standing() != Standing::Sound));
    }

    /// While this member leads, has the states compared. Until Raft ends.
    pub(super) async fn compare_states(self) {
        loop {
            tokio::time::sleep(COMPARE_EVERY).await;
            if self.link().leads() {
                self.compare_once().await;
            }
        }
    }

    async fn compare_once(&self) {
        let own = self.link().id;
        let Some((at, hash)) = self.link().applier.marks().newest() else { return };
        let voters = self.voters();
        let mut others = self.members();
        others.remove(&own);
        let asked = others.iter().map(|(&id, member)| {
            let peer = Peer { id, member: member.clone() };
            async move {
                let question = Call::StateHash(at);
                let asked = self.link().call(peer, Lane::Control, &question, 2 * ANSWER);
                Some((id, asked.await.ok().flatten()?))
            }
        });
        let answers: Vec<Option<(MemberId, u128)>> = join_all(asked).await;
        let hashes = answers.into_iter().flatten().chain([(own, hash)]).collect();
        self.metrics().state_comparisons.inc();
        let told = judge(at.index, &voters, &hashes).into_iter().map(|(id, verdict)| {
            let member = others.get(&id).cloned();
            async move {
                match member {
                    // Who is not reached is told after the next comparison.
                    Some(member) => drop(
                        self.link()
                            .call::<()>(Peer { id, member }, Lane::Control, &Call::Verdict(verdict), ANSWER)
                            .await,
                    ),
                    None => self.take_verdict(&verdict),
                }
            }
        });
        join_all(told).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(voters: &[MemberId], hashes: &[(MemberId, u128)]) -> BTreeMap<MemberId, Verdict> {
        judge(9, &voters.iter().copied().collect(), &hashes.iter().copied().collect())
    }

    const AGREED: Verdict = Verdict::Agreed { at: 9 };

    #[test]
    fn the_majority_of_the_voters_is_right() {
        let outvoted = |sound: &[MemberId]| Verdict::Outvoted { sound: sound.to_vec() };
        let verdicts = judged(&[1, 2, 3], &[(1, 7), (2, 8), (3, 7)]);
        assert_eq!(verdicts, [(1, AGREED), (2, outvoted(&[1, 3])), (3, AGREED)].into());
        // The leader is no more right than others, and learners have no vote.
        let verdicts = judged(&[1, 2, 3], &[(1, 7), (2, 8), (3, 8), (4, 7)]);
        assert_eq!(verdicts, [(1, outvoted(&[2, 3])), (2, AGREED), (3, AGREED), (4, outvoted(&[2, 3]))].into());
        assert_eq!(judged(&[1], &[(1, 7), (2, 8)])[&2], outvoted(&[1]));
    }

    #[test]
    fn without_a_majority_nobody_is() {
        let all = |ids: &[MemberId], verdict: Verdict| ids.iter().map(|id| (*id, verdict.clone())).collect();
        assert_eq!(judged(&[1, 2], &[(1, 7), (2, 8)]), all(&[1, 2], Verdict::Undecided));
        assert_eq!(judged(&[1, 2, 3], &[(1, 7), (2, 8)]), all(&[1, 2], Verdict::Undecided));
        assert_eq!(judged(&[1, 2, 3], &[(1, 7), (2, 8), (3, 9)]), all(&[1, 2, 3], Verdict::Undecided));
        assert_eq!(judged(&[1, 2, 3], &[(1, 7)]), BTreeMap::new(), "nothing was compared");
    }

    #[test]
    fn only_agreement_clears_a_member() {
        let outvoted = Verdict::Outvoted { sound: vec![1] };
        for standing in [Standing::Sound, Standing::Undecided, Standing::Outvoted, Standing::Rebuilt] {
            assert_eq!(standing.after(&AGREED), Standing::Sound);
            assert_eq!(standing.after(&outvoted), Standing::Outvoted);
        }
        assert_eq!(Standing::Sound.after(&Verdict::Undecided), Standing::Undecided);
        assert_eq!(Standing::Rebuilt.after(&Verdict::Undecided), Standing::Rebuilt);
        assert_eq!(Standing::Outvoted.after(&Verdict::Undecided), Standing::Outvoted);
    }

    #[test]
    fn marks_are_found_by_their_whole_position_and_bounded() {
        let marks = Marks::default();
        let at = |term, index| LogPosition { term, node: 1, index };
        let last = u64::try_from(limits::STATE_MARKS_MAX).unwrap();
        (0..=last).for_each(|index| marks.note(at(1, index), u128::from(index)));
        assert_eq!(marks.at(at(1, 0)), None, "the oldest went");
        assert_eq!(marks.at(at(1, last)), Some(u128::from(last)));
        assert_eq!(marks.at(at(2, last)), None, "another leader's entry");
        marks.begin(Some(at(3, 5)), 1);
        assert_eq!((marks.newest(), marks.at(at(1, last))), (Some((at(3, 5), 1)), None));
    }
}
