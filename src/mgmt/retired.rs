//! Frees large values on a thread of its own: snapshots and configurations that are done with. After
//! a reload one can hold a hundred thousand allocations, and management has better things to do for
//! the milliseconds that it takes to return them.

use std::sync::mpsc::{SendError, Sender, channel};
use std::thread;

/// The way to that thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Retired {
    /// None where no thread could be had: then values are freed where they are.
    sender: Option<Sender<Box<dyn Send>>>,
}

impl Retired {
    pub fn new() -> Self {
        let (sender, values) = channel::<Box<dyn Send>>();
        let free = move || values.into_iter().for_each(drop);
        let thread = thread::Builder::new().name("retired".into()).spawn(free);
        if let Err(error) = &thread {
            tracing::warn!("no thread to free memory on: {error}");
        }
        Self {
            sender: thread.is_ok().then_some(sender),
        }
    }

    /// Frees the value soon, elsewhere.
    pub fn free(&self, value: impl Send + 'static) {
        let Some(sender) = &self.sender else { return };
        if let Err(SendError(value)) = sender.send(Box::new(value)) {
            drop(value);
        }
    }
}

impl Default for Retired {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Says which thread dropped it.
    struct Witness(Sender<thread::ThreadId>);

    impl Drop for Witness {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }

    #[test]
    fn values_are_dropped_by_another_thread() {
        let (sender, dropped) = channel();
        let retired = Retired::new();
        for _ in 0..3 {
            retired.free(Witness(sender.clone()));
        }
        let patience = Duration::from_secs(60);
        let by: Vec<_> = (0..3).map(|_| dropped.recv_timeout(patience)).collect();
        let by: Vec<_> = by.into_iter().map(|id| id.expect("dropped")).collect();
        assert!(
            by.iter()
                .all(|id| *id == by[0] && *id != thread::current().id())
        );
    }

    #[test]
    fn without_a_thread_they_are_dropped_at_once() {
        let (sender, dropped) = channel();
        Retired { sender: None }.free(Witness(sender));
        assert_eq!(dropped.try_recv(), Ok(thread::current().id()));
    }
}
