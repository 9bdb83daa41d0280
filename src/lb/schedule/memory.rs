//! What the choice for one new connection depends on beside the snapshot and the counters: copied
//! by the worker that would choose, for somebody else to choose as it would, without consequence.

use super::super::bucket::Bucket;
use super::super::snapshot::{BackendId, ServiceId};
use super::chance::Dice;
use super::locality_table::Entry;
use super::turn::Cursor;
use super::{Request, SchedulerState};

/// One service's part of a worker's [`SchedulerState`], as far as one request goes.
#[derive(Clone)]
pub struct Memory {
    cursor: Cursor,
    rate: Option<(u32, Bucket)>,
    dice: Dice,
    locality: Option<Entry>,
}

impl SchedulerState {
    /// What is known; nothing is changed, and nothing allocated.
    pub fn recall(&self, service: ServiceId, request: &Request) -> Memory {
        let at = service.0 as usize;
        Memory {
            cursor: self.cursors.get(at).copied().unwrap_or_default(),
            rate: self.rates.bucket(at),
            dice: self.dice.clone(),
            locality: self.localities.peek(service, request),
        }
    }

    /// Goes on from what another knew.
    pub fn remember(&mut self, service: ServiceId, request: &Request, memory: Memory) {
        let at = service.0 as usize;
        if let Some(cursor) = self.cursors.get_mut(at) {
            *cursor = memory.cursor;
        }
        if let Some(rate) = memory.rate {
            self.rates.set_bucket(at, rate);
        }
        self.dice = memory.dice;
        if let Some(entry) = memory.locality {
            self.localities.put(service, request, &entry);
        }
    }

    /// Whether the backend was found overloaded and has not been found relieved since.
    pub fn is_marked(&self, id: BackendId) -> bool {
        self.limits.is_marked(id)
    }

    pub fn mark(&self, id: BackendId) {
        self.limits.mark(id);
    }
}
