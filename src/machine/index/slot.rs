//! Where a key keeps its newest value while that is in memory.
//!
//! A cache entry without a cache's bookkeeping: the index finds it. Invariants: what a slot holds is
//! what the block store holds; whether it holds it decides what an answer costs, never the answer;
//! only slots of the newest index are counted, so that the sum is exact whoever fills them.

use bytes::Bytes;
use parking_lot::Mutex;

/// What a value in memory takes beside its bytes.
const OVERHEAD_BYTES: u64 = 64;

#[derive(Debug, Default)]
pub(crate) struct Slot(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
    value: Option<Bytes>,
    /// Its key is in the newest index.
    counted: bool,
    /// Read since the last look of whoever evicts.
    used: bool,
    /// Its key is attached to another lease than the stored version was written with.
    rehung: bool,
}

impl Content {
    /// What it adds to the sum.
    fn cost(&self) -> u64 {
        self.value.as_ref().filter(|_| self.counted).map_or(0, cost)
    }
}

fn cost(value: &Bytes) -> u64 {
    OVERHEAD_BYTES + u64::try_from(value.len()).unwrap_or(u64::MAX / 2)
}

/// By how much the sum of all counted slots changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) struct Change {
    pub(crate) added: u64,
    pub(crate) removed: u64,
}

impl Slot {
    pub(crate) fn full(value: Bytes) -> Self {
        Self(Mutex::new(Content { value: Some(value), ..Content::default() }))
    }

    /// The value, for a reader.
    pub(crate) fn get(&self) -> Option<Bytes> {
        let mut content = self.0.lock();
        content.used = true;
        content.value.clone()
    }

    /// What was read from elsewhere, for the next reader; not if the key is not of the newest index.
    pub(crate) fn fill(&self, value: Bytes) -> Change {
        self.change(|content| {
            if content.counted {
                content.value = Some(value);
            }
        })
    }

    /// Its key came into the newest index, or left it. A former key keeps its value for those who
    /// still hold it.
    pub(crate) fn count(&self, counted: bool) -> Change {
        self.change(|content| content.counted = counted)
    }

    /// Takes the value out, unless it was used since the last time.
    pub(crate) fn evict(&self) -> Change {
        self.change(|content| {
            if !std::mem::take(&mut content.used) {
                content.value = None;
            }
        })
    }

    #[cfg(test)]
    pub(crate) fn counted_bytes(&self) -> u64 {
        self.0.lock().cost()
    }

    /// A slot for the key's successor, with the value if it was here. What is counted stays counted
    /// with this one until `count` says otherwise, so the sum may be too high for a moment.
    pub(super) fn moved(&self) -> Self {
        let content = self.0.lock();
        Self(Mutex::new(Content {
            value: content.value.clone(),
            counted: false,
            used: content.used,
            rehung: content.rehung,
        }))
    }

    /// From here on the key is not attached as the stored version says.
    pub(crate) fn rehang(&self) {
        self.0.lock().rehung = true;
    }

    pub(crate) fn is_rehung(&self) -> bool {
        self.0.lock().rehung
    }

    fn change(&self, change: impl FnOnce(&mut Content)) -> Change {
        let mut content = self.0.lock();
        let before = content.cost();
        change(&mut content);
        Change { added: content.cost(), removed: before }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value() -> Bytes {
        Bytes::from_static(b"0123456789")
    }

    #[test]
    fn only_what_is_in_the_newest_index_is_counted_and_filled() {
        let slot = Slot::full(value());
        assert_eq!(slot.count(true), Change { added: 74, removed: 0 });
        assert_eq!(slot.count(false), Change { added: 0, removed: 74 });
        assert_eq!(slot.get(), Some(value()), "for readers of older states");
        let empty = Slot::default();
        assert_eq!(empty.fill(value()), Change { added: 0, removed: 0 });
        assert_eq!(empty.get(), None);
        assert_eq!(empty.count(true), Change { added: 0, removed: 0 });
        assert_eq!(empty.fill(value()), Change { added: 74, removed: 0 });
        assert_eq!(empty.fill(value()), Change { added: 74, removed: 74 });
    }

    #[test]
    fn a_value_that_is_read_gets_a_second_chance() {
        let slot = Slot::full(value());
        assert_eq!(slot.count(true).added, 74);
        assert_eq!(slot.get(), Some(value()));
        assert_eq!(slot.evict(), Change { added: 74, removed: 74 });
        assert_eq!(slot.evict(), Change { added: 0, removed: 74 });
        assert_eq!(slot.evict(), Change { added: 0, removed: 0 });
        assert_eq!(slot.get(), None);
    }
}
