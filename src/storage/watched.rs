//! An engine whose calls are watched: one that hangs or panics ends the process.
//!
//! Invariants: a panic inside the engine becomes a fault, never unwinds into the caller; a call
//! outstanding for longer than the limit is reported to `fatal` once. The monitor counts its own
//! wake-ups and so needs no clock. It must not know which engine it watches.

use super::Fatal;
use super::engine::{Engine, EngineBatch};
use crate::model::{Fault, limits};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::fmt::{self, Debug};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

const TICK: Duration = Duration::from_secs(1);

pub struct Watched<E> {
    engine: E,
    calls: Arc<Calls>,
    fatal: Fatal,
    monitor: Option<JoinHandle<()>>,
}

impl<E: Debug> Debug for Watched<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.engine).finish()
    }
}

#[derive(Debug, Default)]
struct Calls {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Debug, Default)]
struct State {
    tick: u64,
    /// Per outstanding call: its name and the tick it began at. Free slots are reused.
    slots: Vec<Option<(&'static str, u64)>>,
    free: Vec<usize>,
    stop: bool,
}

impl<E: Engine> Watched<E> {
    /// # Errors
    /// A fault if the monitor's thread cannot be started.
    pub fn new(engine: E, fatal: Fatal) -> Result<Self, Fault> {
        Self::with_limit(engine, fatal, TICK, limits::ENGINE_WATCHDOG_S)
    }

    fn with_limit(engine: E, fatal: Fatal, tick: Duration, ticks_max: u64) -> Result<Self, Fault> {
        let calls = Arc::new(Calls::default());
        let (watched, report) = (Arc::clone(&calls), Arc::clone(&fatal));
        let monitor = std::thread::Builder::new()
            .name("engine-watch".into())
            .spawn(move || watched.monitor(&report, tick, ticks_max))
            .map_err(|error| Fault::io("start the engine's monitor", &error))?;
        Ok(Self { engine, calls, fatal, monitor: Some(monitor) })
    }

    fn call<T>(&self, name: &'static str, work: impl FnOnce(&E) -> Result<T, Fault>) -> Result<T, Fault> {
        let _outstanding = self.calls.begin(name);
        // The engine is not used again after a panic: the fault ends the process.
        catch_unwind(AssertUnwindSafe(|| work(&self.engine))).unwrap_or_else(|panic| {
            let fault = Fault::Invariant(format!("the engine panicked in {name}: {}", super::panic_text(&*panic)));
            (self.fatal)(&fault);
            Err(fault)
        })
    }
}

impl<E> Drop for Watched<E> {
    fn drop(&mut self) {
        self.calls.state.lock().stop = true;
        self.calls.stopped.notify_all();
        if let Some(monitor) = self.monitor.take() {
            // A monitor that panicked in the handler has nothing more to do.
            drop(monitor.join());
        }
    }
}

impl Calls {
    fn begin(&self, name: &'static str) -> Outstanding<'_> {
        let mut state = self.state.lock();
        let entry = Some((name, state.tick));
        let slot = if let Some(slot) = state.free.pop() {
            state.slots[slot] = entry;
            slot
        } else {
            state.slots.push(entry);
            state.slots.len() - 1
        };
        Outstanding { calls: self, slot }
    }

    fn monitor(&self, fatal: &Fatal, tick: Duration, ticks_max: u64) {
        let mut state = self.state.lock();
        let mut reported = false;
        while !state.stop {
            let woken = !self.stopped.wait_for(&mut state, tick).timed_out();
            if woken {
                continue;
            }
            state.tick += 1;
            let now = state.tick;
            // One tick more, since a call may have begun just before a wake-up.
            let hung = state.slots.iter().flatten().find(|(_, began)| now - began > ticks_max).copied();
            if let (Some((name, _)), false) = (hung, reported) {
                reported = true;
                let fault = Fault::Invariant(format!("the engine's {name} has not returned for {ticks_max} s"));
                drop(state);
                fatal(&fault);
                state = self.state.lock();
            }
        }
    }
}

struct Outstanding<'a> {
    calls: &'a Calls,
    slot: usize,
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        let mut state = self.calls.state.lock();
        state.slots[self.slot] = None;
        state.free.push(self.slot);
    }
}

impl<E: Engine> Engine for Watched<E> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.call("get", |engine| engine.get(key))
    }

    fn commit(&self, batch: EngineBatch) -> Result<(), Fault> {
        self.call("commit", |engine| engine.commit(batch))
    }

    fn disk_bytes(&self) -> Result<u64, Fault> {
        self.call("disk_bytes", Engine::disk_bytes)
    }

    fn let_go(&self) -> Result<(), Fault> {
        self.call("let_go", Engine::let_go)
    }

    /// A look at a number, which cannot hang.
    fn is_crowded(&self) -> bool {
        self.engine.is_crowded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::engine_suite as suite;
    use crate::storage::memory::MemoryEngine;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    #[derive(Debug)]
    struct Broken {
        release: Mutex<Receiver<()>>,
    }

    impl Engine for Broken {
        fn get(&self, _: &[u8]) -> Result<Option<Bytes>, Fault> {
            self.release.lock().recv().unwrap();
            Ok(None)
        }
        fn commit(&self, _: EngineBatch) -> Result<(), Fault> {
            panic!("a bug in the engine")
        }
        fn disk_bytes(&self) -> Result<u64, Fault> {
            Ok(0)
        }
    }

    fn broken(ticks_max: u64) -> (Watched<Broken>, SyncSender<()>, Receiver<Fault>) {
        let (report, reports) = sync_channel(9);
        let (release, gate) = sync_channel(9);
        let fatal: Fatal = Arc::new(move |fault: &Fault| report.send(fault.clone()).unwrap());
        let engine = Broken { release: Mutex::new(gate) };
        (Watched::with_limit(engine, fatal, Duration::from_millis(5), ticks_max).unwrap(), release, reports)
    }

    #[test]
    fn it_keeps_the_contract_of_an_engine() {
        let fatal: Fatal = Arc::new(|fault: &Fault| panic!("{fault}"));
        suite::run(&Watched::new(MemoryEngine::new(), fatal).unwrap());
    }

    #[test]
    fn a_panic_in_the_engine_is_a_fault() {
        let (watched, _release, reports) = broken(u64::MAX);
        let fault = watched.commit(EngineBatch::new()).unwrap_err();
        assert!(fault.to_string().contains("a bug in the engine"), "{fault}");
        assert!(reports.recv().unwrap().to_string().contains("panicked in commit"));
    }

    #[test]
    fn a_call_that_hangs_is_reported_while_it_hangs() {
        let (watched, release, reports) = broken(3);
        std::thread::scope(|scope| {
            let call = scope.spawn(|| watched.get(b"k"));
            let fault = reports.recv().unwrap();
            assert!(fault.to_string().contains("get has not returned"), "{fault}");
            release.send(()).unwrap();
            assert_eq!(call.join().unwrap().unwrap(), None);
        });
        watched.disk_bytes().unwrap();
        assert!(reports.try_recv().is_err(), "it is reported once");
    }
}
