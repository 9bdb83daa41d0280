//! The Maglev tables in use: identical ones are stored once, and those that a new snapshot needs
//! again are taken from here.
//!
//! Lives on the management thread. A large table takes milliseconds to build, which neither workers
//! nor the management loop have: [`Ahead`] has a thread of its own for it.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc;
use std::sync::{Arc, Weak};

use super::desired::Desired;
use crate::lb::maglev::{Maglev, Member};

/// All that a table depends on: its members in order, with their weights, and its size.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TableKey {
    pub members: Vec<Member>,
    pub size: u32,
}

/// A table and what it was built from.
pub type Built = (TableKey, Arc<Maglev>);

/// Tables by what they depend on, for as long as some snapshot holds them.
#[derive(Clone, Default, Debug)]
pub struct HashTables {
    tables: HashMap<TableKey, Weak<Maglev>>,
}

impl HashTables {
    /// The table for `key`; one that nobody holds is built on this thread.
    pub fn table_now(&mut self, key: &TableKey) -> Arc<Maglev> {
        self.get(key).unwrap_or_else(|| {
            let table = Arc::new(Maglev::build(&key.members, key.size));
            self.tables.insert(key.clone(), Arc::downgrade(&table));
            table
        })
    }

    /// Those of `keys` that nobody holds a table of, each once.
    pub fn missing(&self, keys: &[TableKey]) -> Vec<TableKey> {
        let mut seen = HashSet::new();
        let missing = |key: &&TableKey| self.get(key).is_none() && seen.insert((*key).clone());
        keys.iter().filter(missing).cloned().collect()
    }

    /// Takes up what was built elsewhere, and forgets what nobody holds.
    pub fn take_up(&mut self, built: &[Built]) {
        for (key, table) in built {
            self.tables.insert(key.clone(), Arc::downgrade(table));
        }
        self.tables.retain(|_, table| table.strong_count() > 0);
    }

    /// Different tables in use.
    pub fn len(&self) -> usize {
        let held = |table: &&Weak<Maglev>| table.strong_count() > 0;
        self.tables.values().filter(held).count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get(&self, key: &TableKey) -> Option<Arc<Maglev>> {
        self.tables.get(key)?.upgrade()
    }
}

/// Looks at what is missing before the rest is built on the management thread: changes that come
/// faster than tables are built must not keep a snapshot back for ever.
const ROUNDS: u32 = 8;

/// The tables that the next snapshot waits for.
#[derive(Debug, Default)]
pub struct Ahead {
    building: Option<Building>,
    /// Built already, and held until the snapshot holds them: what changes meanwhile may need
    /// others, and the wait for those must not lose these.
    built: Vec<Built>,
    rounds: u32,
}

impl Ahead {
    /// Whether something is being built.
    pub fn is_going(&self) -> bool {
        self.building.is_some()
    }

    /// Takes up what has been built and begins to build what `desired` needs besides. True when
    /// the snapshot can be built now.
    pub fn is_ready(&mut self, desired: &mut Desired) -> bool {
        if let Some(building) = &self.building {
            match building.progress() {
                Progress::Going => return false,
                Progress::Done(tables) => self.built.extend(tables),
                Progress::Failed => tracing::error!("hash tables could not be built aside"),
            }
            self.building = None;
            desired.take_tables(&self.built);
        }
        let missing = desired.missing_tables();
        if missing.is_empty() || self.rounds == ROUNDS {
            return true;
        }
        self.rounds += 1;
        self.building = Building::begin(missing).ok();
        self.building.is_none()
    }

    /// The snapshot is built, and holds what it needs.
    pub fn is_used(&mut self) {
        self.built.clear();
        self.rounds = 0;
    }
}

/// Tables that are being built.
#[derive(Debug)]
struct Building {
    built: mpsc::Receiver<Vec<Built>>,
}

/// What has become of them.
#[derive(Debug)]
enum Progress {
    Going,
    Done(Vec<Built>),
    /// The thread ended without them; they can be built where they are needed.
    Failed,
}

impl Building {
    /// Begins to build tables on another thread.
    fn begin(keys: Vec<TableKey>) -> std::io::Result<Self> {
        let (sender, built) = mpsc::channel();
        let build = move || {
            let table = |key: TableKey| {
                let table = Arc::new(Maglev::build(&key.members, key.size));
                (key, table)
            };
            // Nobody waits for them any more when the program ends.
            let _ = sender.send(keys.into_iter().map(table).collect());
        };
        std::thread::Builder::new()
            .name("hash-tables".into())
            .spawn(build)?;
        Ok(Self { built })
    }

    fn progress(&self) -> Progress {
        match self.built.try_recv() {
            Ok(built) => Progress::Done(built),
            Err(mpsc::TryRecvError::Empty) => Progress::Going,
            Err(mpsc::TryRecvError::Disconnected) => Progress::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mgmt::config::{Config, parse};
    use std::net::Ipv4Addr;
    use std::time::{Duration, Instant};

    /// Two services by hash; the first one's backend has this weight.
    fn services(weight: u16) -> Config {
        let service = |name: &str, weight: u16, n: u8| {
            format!(
                "[[service]]\nname = \"{name}\"\nlisten = \"tcp:198.51.100.{n}:80\"\nmethod = \"nat\"\n\
                 scheduler = \"mh\"\n[[service.backend]]\nname = \"a\"\naddress = \"192.0.2.1{n}\"\n\
                 weight = {weight}\n[[service.backend]]\nname = \"b\"\naddress = \"192.0.2.99\"\n"
            )
        };
        let port =
            "[[port]]\nname = \"wan\"\ndevice = \"net_null0\"\naddresses = [\"192.0.2.2/24\"]\n";
        let text = [port, &service("x", weight, 1), &service("y", 1, 2)].concat();
        parse(&text).expect("a configuration")
    }

    /// Looks until the next snapshot can be built; `meanwhile` after each set of tables.
    fn look_until_ready(
        ahead: &mut Ahead,
        desired: &mut Desired,
        mut meanwhile: impl FnMut(&mut Desired),
    ) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut rounds = 0;
        while !ahead.is_ready(desired) {
            assert!(Instant::now() < deadline, "after {rounds} rounds");
            if ahead.rounds > rounds {
                rounds = ahead.rounds;
                meanwhile(desired);
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_change_while_tables_are_built_loses_none_of_them() {
        let (mut ahead, mut desired) =
            (Ahead::default(), Desired::new(services(1), Vec::new(), 128));
        let mut change = Some(services(2));
        look_until_ready(&mut ahead, &mut desired, |desired| {
            if let Some(config) = change.take() {
                desired.replace(config);
            }
        });
        assert_eq!(
            ahead.rounds, 2,
            "both services' tables, then the changed one"
        );
        assert!(desired.missing_tables().is_empty());
        ahead.is_used();
        assert_eq!((ahead.built.len(), ahead.rounds), (0, 0));
    }

    #[test]
    fn changes_without_end_do_not_keep_a_snapshot_back() {
        let (mut ahead, mut desired) =
            (Ahead::default(), Desired::new(services(1), Vec::new(), 128));
        let mut weight = 1;
        look_until_ready(&mut ahead, &mut desired, |desired| {
            weight += 1;
            desired.replace(services(weight));
        });
        assert_eq!((ahead.rounds, weight), (ROUNDS, 9));
        assert_eq!(desired.missing_tables().len(), 1, "built with the snapshot");
    }

    fn key(weights: &[u32]) -> TableKey {
        let member = |(n, &weight): (usize, &u32)| Member {
            address: Ipv4Addr::new(10, 0, 0, n as u8).into(),
            port: 80,
            weight,
        };
        TableKey {
            members: weights.iter().enumerate().map(member).collect(),
            size: 251,
        }
    }

    #[test]
    fn identical_tables_are_stored_once_and_kept_while_held() {
        let mut cache = HashTables::default();
        let keys = [key(&[1, 2]), key(&[1, 2]), key(&[1, 3])];
        assert_eq!(cache.missing(&keys), [key(&[1, 2]), key(&[1, 3])]);
        let first: Vec<_> = keys.iter().map(|key| cache.table_now(key)).collect();
        assert!(Arc::ptr_eq(&first[0], &first[1]));
        assert_ne!(first[0], first[2]);
        assert_eq!((cache.len(), cache.missing(&keys).len()), (2, 0));
        let again = cache.table_now(&keys[0]);
        assert!(Arc::ptr_eq(&first[0], &again));
        drop((first, again));
        assert!(cache.is_empty());
        cache.take_up(&[]);
        assert_eq!(cache.tables.len(), 0);
    }

    #[test]
    fn what_another_thread_built_is_taken_up_while_this_one_goes_on() {
        let large: Vec<TableKey> = (1..4)
            .map(|n| TableKey {
                size: 655_373,
                ..key(&[n, 7])
            })
            .collect();
        let building = Building::begin(large.clone()).expect("a thread");
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut looks = 0;
        let built = loop {
            match building.progress() {
                Progress::Done(built) => break built,
                Progress::Failed => panic!("not built"),
                Progress::Going => looks += 1,
            }
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        };
        assert!(looks > 1, "{looks}");
        let mut cache = HashTables::default();
        cache.take_up(&built);
        assert!(cache.missing(&large).is_empty());
        let table = cache.table_now(&large[1]);
        assert!(Arc::ptr_eq(&table, &built[1].1));
        assert_eq!(*table, Maglev::build(&large[1].members, 655_373));
    }
}
