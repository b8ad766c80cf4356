//! The core against a naive oracle on a simulated clock.

use crate::service::lessor::core::{Core, Due, Renewal, floor_ms};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// Rounding to ms at both ends: how much later than its deadline a lease may come up.
const ROUNDING: Duration = Duration::from_millis(2);

#[derive(Debug, Clone)]
enum Step {
    Start {
        id: i64,
        ttl_ms: u64,
    },
    Renew {
        id: i64,
        ttl_ms: u64,
    },
    End {
        id: i64,
    },
    Checkpoint {
        id: i64,
        logged_ms: u64,
    },
    Pass {
        micros: u64,
    },
    /// The clock stands still for others and leaps for us, as after SIGSTOP.
    Gap {
        seconds: u64,
    },
    TakeDue {
        limit: usize,
    },
    /// What was taken has ended, or nothing of it.
    Settle {
        ended: bool,
    },
    /// Another term: every lease has its whole TTL.
    NewTerm,
}

fn step() -> impl Strategy<Value = Step> {
    let id = 1..12_i64;
    let ttl = prop_oneof![1000..1100_u64, 1000..5000_u64, Just(90_000_u64)];
    prop_oneof![
        4 => (id.clone(), ttl.clone()).prop_map(|(id, ttl_ms)| Step::Start { id, ttl_ms }),
        4 => (id.clone(), ttl).prop_map(|(id, ttl_ms)| Step::Renew { id, ttl_ms }),
        1 => id.clone().prop_map(|id| Step::End { id }),
        1 => (id, 0..100_000_u64).prop_map(|(id, logged_ms)| Step::Checkpoint { id, logged_ms }),
        6 => (0..700_000_u64).prop_map(|micros| Step::Pass { micros }),
        1 => (1..200_u64).prop_map(|seconds| Step::Gap { seconds }),
        5 => (1..5_usize).prop_map(|limit| Step::TakeDue { limit }),
        3 => any::<bool>().prop_map(|ended| Step::Settle { ended }),
        1 => Just(Step::NewTerm),
    ]
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    ttl: Duration,
    /// It must live until here, whatever is rounded.
    until: Duration,
    ending: bool,
    checkpointed: bool,
}

#[derive(Default)]
struct Oracle {
    core: Core,
    leases: BTreeMap<i64, Lease>,
    now: Duration,
    taken: Vec<Due>,
}

impl Oracle {
    fn start(&mut self, id: i64, ttl_ms: u64) {
        self.core.start(id, ttl_ms, false, self.now);
        let ttl = Duration::from_millis(ttl_ms);
        self.leases.insert(id, Lease { ttl, until: self.now + ttl, ending: false, checkpointed: false });
    }

    fn renew(&mut self, id: i64, ttl_ms: u64) {
        let renewal = self.core.renew(id, ttl_ms, self.now);
        let Some(lease) = self.leases.get_mut(&id) else {
            assert_eq!(renewal, Renewal::Unknown);
            return;
        };
        if lease.ending {
            assert_eq!(renewal, Renewal::Ending);
        } else if lease.checkpointed {
            assert_eq!(renewal, Renewal::MustLog);
        } else {
            assert_eq!(renewal, Renewal::Renewed);
            lease.until = lease.until.max(self.now + Duration::from_millis(ttl_ms));
        }
    }

    fn take(&mut self, limit: usize) {
        if !self.taken.is_empty() {
            return;
        }
        self.taken = self.core.take_due(self.now, limit);
        assert!(self.taken.len() <= limit);
        for due in &self.taken {
            let lease = self.leases.get_mut(&due.id).expect("only what exists is due");
            assert!(!lease.ending && lease.until <= self.now, "{due:?} is early: {lease:?} at {:?}", self.now);
            assert!(Duration::from_millis(due.deadline_ms) >= lease.until);
            lease.ending = true;
        }
        let left = self.leases.values().filter(|lease| !lease.ending && lease.until + ROUNDING <= self.now).count();
        assert!(left == 0 || self.taken.len() == limit, "{left} were forgotten");
    }

    fn settle(&mut self, ended: bool) {
        let taken = std::mem::take(&mut self.taken);
        for due in &taken {
            // It may have been started again meanwhile.
            let ending = self.leases.get(&due.id).is_some_and(|lease| lease.ending);
            if ended && ending {
                self.core.end(due.id);
                self.leases.remove(&due.id);
            }
        }
        self.core.settle(&taken);
        for due in &taken {
            if let Some(lease) = self.leases.get_mut(&due.id) {
                lease.ending = false;
            }
        }
    }

    fn checkpoint(&mut self, id: i64, logged_ms: u64) {
        let left_ms = self.core.checkpoint(id, logged_ms, 30_000, self.now);
        let Some(lease) = self.leases.get_mut(&id).filter(|lease| !lease.ending) else {
            assert_eq!(left_ms, None);
            return;
        };
        let left = lease.until.saturating_sub(self.now);
        match left_ms {
            Some(left_ms) => {
                assert!(left_ms + 30_000 < logged_ms);
                assert!(Duration::from_millis(left_ms) >= left, "a checkpoint of less than is left");
                lease.checkpointed = true;
            }
            None => assert!(left + Duration::from_secs(30) + ROUNDING >= Duration::from_millis(logged_ms)),
        }
    }

    fn new_term(&mut self) {
        self.core = Core::default();
        self.taken.clear();
        for (id, lease) in &mut self.leases {
            self.core.start(*id, lease.ttl.as_millis().try_into().unwrap(), false, self.now);
            *lease = Lease { until: self.now + lease.ttl, ending: false, checkpointed: false, ..*lease };
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Start { id, ttl_ms } => self.start(id, ttl_ms),
            Step::Renew { id, ttl_ms } => self.renew(id, ttl_ms),
            Step::End { id } => {
                self.core.end(id);
                self.leases.remove(&id);
            }
            Step::Checkpoint { id, logged_ms } => self.checkpoint(id, logged_ms),
            Step::Pass { micros } => self.now += Duration::from_micros(micros),
            Step::Gap { seconds } => self.now += Duration::from_secs(seconds),
            Step::TakeDue { limit } => self.take(limit),
            Step::Settle { ended } => self.settle(ended),
            Step::NewTerm => self.new_term(),
        }
        assert_eq!(self.core.len(), self.leases.len());
        let first = self.leases.values().filter(|lease| !lease.ending).map(|lease| lease.until).min();
        let next = self.core.next_ms(self.now).map(Duration::from_millis);
        // The queue wakes the driver in time for the first deadline, and not for nothing.
        if let Some(first) = first {
            assert!(next.is_some_and(|next| next <= (first + ROUNDING).max(self.now)), "{next:?} is after {first:?}");
        }
        if let Some(next) = next.filter(|next| floor_ms(*next) <= floor_ms(self.now)) {
            assert!(first.is_some_and(|first| first <= self.now), "{next:?} is no deadline");
        }
        for (id, lease) in &self.leases {
            let left = Duration::from_millis(self.core.left_ms(*id, self.now).unwrap());
            assert!(left >= lease.until.saturating_sub(self.now));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn nothing_ends_early_and_nothing_is_forgotten(steps in prop::collection::vec(step(), 1..120)) {
        let mut oracle = Oracle::default();
        for step in steps {
            oracle.step(step);
        }
        // In the end all of it comes up.
        oracle.settle(false);
        oracle.now += Duration::from_secs(400);
        oracle.take(usize::MAX);
        prop_assert!(oracle.leases.values().all(|lease| lease.ending));
    }
}

#[test]
fn a_storm_comes_up_whole_in_bounded_parts() {
    const LEASES: i64 = 100_000;
    let mut core = Core::default();
    for id in 1..=LEASES {
        core.start(id, 10_000, false, Duration::from_micros(u64::try_from(id).unwrap()));
    }
    // Half of them are renewed: their items come up and go back.
    for id in (1..=LEASES).step_by(2) {
        assert_eq!(core.renew(id, 10_000, Duration::from_secs(5)), Renewal::Renewed);
    }
    let now = Duration::from_secs(11);
    let mut ended = 0;
    loop {
        let due = core.take_due(now, 1000);
        assert!(due.len() <= 1000 && due.iter().all(|due| due.id % 2 == 0));
        if due.is_empty() {
            break;
        }
        due.iter().for_each(|due| core.end(due.id));
        core.settle(&due);
        ended += due.len();
    }
    assert_eq!((ended, core.len()), (50_000, 50_000));
    assert_eq!(core.next_ms(now), Some(15_000));
}

#[test]
fn a_million_leases_cost_at_most_64_bytes_each() {
    const LEASES: i64 = 1_000_000;
    let mut core = Core::default();
    for id in 1..=LEASES {
        // Ids are spread over all of their range.
        core.start(id.wrapping_mul(0x5851_f42d_4c95_7f2d) & i64::MAX, 60_000, false, Duration::ZERO);
    }
    let each = core.bytes() / core.len();
    assert!(each <= 64, "{each} bytes each");
    // Renewals, revocations and grants do not make it grow.
    for id in 1..=LEASES {
        let spread = id.wrapping_mul(0x5851_f42d_4c95_7f2d) & i64::MAX;
        assert_eq!(core.renew(spread, 60_000, Duration::from_secs(1)), Renewal::Renewed);
        core.end(spread);
        core.start(spread, 60_000, false, Duration::from_secs(1));
    }
    let each = core.bytes() / core.len();
    assert!(each <= 96, "{each} bytes each with as many stale items as are kept at most");
}
