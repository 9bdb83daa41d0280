//! The Maglev tables in use: identical ones are stored once, and those that a new snapshot needs
//! again are taken from here.
//!
//! Lives on the management thread. Tables are built by tokio's blocking threads: a large one
//! takes milliseconds, which neither workers nor the management loop have.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::lb::maglev::{Maglev, Member};

/// All that a table depends on: its members in order, with configured weights, and its size.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TableKey {
    pub members: Vec<Member>,
    pub size: u32,
}

impl TableKey {
    fn build(&self) -> Arc<Maglev> {
        Arc::new(Maglev::build(&self.members, self.size))
    }
}

/// A build was cut short because the program is going down.
#[derive(Debug, thiserror::Error)]
#[error("building a hash table was interrupted; the configuration in force stays")]
pub struct Interrupted(#[from] tokio::task::JoinError);

/// Tables by what they depend on, for as long as some snapshot holds them.
#[derive(Default, Debug)]
pub struct HashTables {
    tables: HashMap<TableKey, Weak<Maglev>>,
}

impl HashTables {
    /// The tables for `keys`, in order. Those that no snapshot holds are built, each once, away
    /// from this thread. Management goes on meanwhile, and publishes when all are there.
    pub async fn tables(&mut self, keys: &[TableKey]) -> Result<Vec<Arc<Maglev>>, Interrupted> {
        let missing = self.missing(keys);
        if missing.is_empty() {
            return Ok(self.collect(keys, Vec::new()));
        }
        let built = tokio::task::spawn_blocking(|| build_all(missing)).await?;
        Ok(self.collect(keys, built))
    }

    /// The same on this thread, for the start of the program.
    pub fn tables_now(&mut self, keys: &[TableKey]) -> Vec<Arc<Maglev>> {
        let built = build_all(self.missing(keys));
        self.collect(keys, built)
    }

    /// Different tables in use.
    pub fn len(&self) -> usize {
        self.tables
            .values()
            .filter(|table| table.strong_count() > 0)
            .count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get(&self, key: &TableKey) -> Option<Arc<Maglev>> {
        self.tables.get(key)?.upgrade()
    }

    fn missing(&self, keys: &[TableKey]) -> Vec<TableKey> {
        let mut missing: Vec<TableKey> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for key in keys {
            if self.get(key).is_none() && seen.insert(key) {
                missing.push(key.clone());
            }
        }
        missing
    }

    /// Takes up what was built, forgets what nobody holds, and answers `keys`.
    fn collect(
        &mut self,
        keys: &[TableKey],
        built: Vec<(TableKey, Arc<Maglev>)>,
    ) -> Vec<Arc<Maglev>> {
        for (key, table) in &built {
            self.tables.insert(key.clone(), Arc::downgrade(table));
        }
        // One that was dropped while others were being built is built here after all.
        let tables = keys
            .iter()
            .map(|key| {
                self.get(key).unwrap_or_else(|| {
                    let table = key.build();
                    self.tables.insert(key.clone(), Arc::downgrade(&table));
                    table
                })
            })
            .collect();
        self.tables.retain(|_, table| table.strong_count() > 0);
        tables
    }
}

fn build_all(keys: Vec<TableKey>) -> Vec<(TableKey, Arc<Maglev>)> {
    keys.into_iter()
        .map(|key| {
            let table = key.build();
            (key, table)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

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

    #[tokio::test]
    async fn identical_tables_are_stored_once_and_kept_while_held() {
        let mut cache = HashTables::default();
        let keys = [key(&[1, 2]), key(&[1, 2]), key(&[1, 3])];
        let first = cache.tables(&keys).await.expect("built");
        assert!(Arc::ptr_eq(&first[0], &first[1]));
        assert_ne!(first[0], first[2]);
        assert_eq!(cache.len(), 2);
        let again = cache.tables_now(&keys[..1]);
        assert!(Arc::ptr_eq(&first[0], &again[0]));
        drop((first, again));
        assert!(cache.is_empty());
        let anew = cache.tables(&[key(&[5])]).await.expect("built");
        assert_eq!((cache.tables.len(), anew[0].size()), (1, 251));
    }

    #[tokio::test]
    async fn the_management_loop_goes_on_while_tables_are_built() {
        let mut cache = HashTables::default();
        let large: Vec<TableKey> = (1..4)
            .map(|n| TableKey {
                size: 655_373,
                ..key(&[n, 7])
            })
            .collect();
        let built = std::cell::Cell::new(false);
        let build = async {
            let tables = cache.tables(&large).await.expect("built");
            built.set(true);
            tables
        };
        let other = async {
            let mut turns = 0;
            while !built.get() {
                turns += 1;
                tokio::task::yield_now().await;
            }
            turns
        };
        let (tables, turns) = tokio::join!(build, other);
        assert_eq!(tables.len(), 3);
        assert!(turns > 1, "{turns}");
    }
}
