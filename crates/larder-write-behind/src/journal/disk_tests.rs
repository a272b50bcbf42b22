//! Tests of the journal on a disk that loses power, tears, fills up and fails.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use parking_lot::Mutex;
use redb::StorageBackend;

use super::{
    DeadRecord, Draft, Journal as _, JournalError, Record,
    disk::{Disk, Storage},
};

/// A disk: what is synchronised, and the writes since then, which a power cut may lose, tear and reorder.
#[derive(Clone, Debug, Default)]
struct Platter(Arc<Mutex<PlatterState>>);

#[derive(Debug, Default)]
struct PlatterState {
    synchronised: Vec<u8>,
    seen: Vec<u8>,
    writes: Vec<Change>,
    /// The number of operations until all fail.
    fails_in: Option<u64>,
    /// How many synchronisations fail.
    bad_syncs: u64,
    /// The most bytes that fit.
    room: Option<u64>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

fn change(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(length) => bytes.resize(*length as usize, 0),
        Change::Write(offset, data) => {
            let end = *offset as usize + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset as usize..end].copy_from_slice(data);
        }
    }
}

impl PlatterState {
    fn act(&mut self) -> io::Result<()> {
        match &mut self.fails_in {
            Some(0) => Err(io::Error::other("the power is off")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn write(&mut self, new: Change) -> io::Result<()> {
        self.act()?;
        let end = match &new {
            Change::Length(length) => *length,
            Change::Write(offset, data) => offset + data.len() as u64,
        };
        if self.room.is_some_and(|room| end > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        change(&mut self.seen, &new);
        self.writes.push(new);
        Ok(())
    }
}

impl StorageBackend for Platter {
    fn len(&self) -> io::Result<u64> {
        self.0.lock().act()?;
        Ok(self.0.lock().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        state.act()?;
        let from = state.seen.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().write(Change::Length(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        state.act()?;
        if state.bad_syncs > 0 {
            state.bad_syncs -= 1;
            return Err(io::Error::other("the disk reports an error"));
        }
        state.synchronised = state.seen.clone();
        state.writes.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().write(Change::Write(offset, data.to_vec()))
    }
}

impl Platter {
    fn storage(&self) -> impl Storage {
        let platter = self.clone();
        move || platter.clone()
    }

    fn open(&self) -> Result<Disk, JournalError> {
        Disk::on(self.storage(), "test".to_owned())
    }

    /// Cuts the power: of the writes that were not synchronised, some are lost, the others come in any order, and any may be
    /// torn.
    fn after_power_cut(&self, random: &AtomicU64) -> Self {
        let state = self.0.lock();
        let mut bytes = state.synchronised.clone();
        let mut writes = state.writes.clone();
        for at in (1..writes.len()).rev() {
            writes.swap(at, drawn(random, at as u64 + 1) as usize);
        }
        for lost in writes {
            match lost {
                _ if drawn(random, 3) == 0 => {}
                Change::Write(offset, data) if drawn(random, 3) == 0 => {
                    let torn = drawn(random, data.len() as u64 + 1) as usize;
                    change(&mut bytes, &Change::Write(offset, data[..torn].to_vec()));
                }
                // A file does not become shorter than what was written to it.
                Change::Length(length) if length < bytes.len() as u64 => {}
                whole => change(&mut bytes, &whole),
            }
        }
        Self(Arc::new(Mutex::new(PlatterState {
            synchronised: bytes.clone(),
            seen: bytes,
            ..PlatterState::default()
        })))
    }
}

/// The next number of a sequence (SplitMix64).
fn drawn(seed: &AtomicU64, below: u64) -> u64 {
    let mut z = seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % below
}

fn draft(n: u64) -> Draft {
    let partition = (n % 2) as u32;
    Draft {
        partition,
        key: vec![n as u8],
        operation: n.to_le_bytes().to_vec(),
        version: 1,
        created: n,
    }
}

/// Appends operations at once, and returns the numbers of those that were accepted.
fn append(disk: &Disk, operations: impl IntoIterator<Item = u64>) -> Vec<Option<u64>> {
    let (accepted, numbers) = mpsc::channel();
    let mut all = 0;
    for n in operations {
        let accepted = accepted.clone();
        disk.append(
            draft(n),
            Box::new(move |number| accepted.send(number.ok()).expect("it is received below")),
        );
        all += 1;
    }
    (0..all).map(|_| numbers.recv().expect("each append is answered")).collect()
}

async fn records(disk: &Disk) -> Vec<Record> {
    disk.recover(2).await.expect("the disk works").records
}

#[tokio::test]
async fn a_power_cut_loses_no_accepted_operation() {
    for seed in 0..300 {
        let random = AtomicU64::new(seed);
        let mut platter = Platter::default();
        let (mut accepted, mut given, mut identity) = (Vec::new(), 0, None);
        for _cut in 0..3 {
            let Ok(disk) = platter.open() else {
                panic!("the journal cannot be opened, seed {seed}")
            };
            let recovered = disk.recover(2).await.unwrap();
            assert_eq!(*identity.get_or_insert(recovered.id), recovered.id);
            let found: Vec<u64> =
                recovered.records.iter().map(|record| record.draft.created).collect();
            let lost = accepted.iter().find(|n| !found.contains(n));
            assert_eq!(lost, None, "seed {seed}: {found:?} of {accepted:?}");
            assert!(found.is_sorted(), "in order, and each once, seed {seed}: {found:?}");
            assert!(recovered.records.is_sorted_by_key(|record| record.number));
            assert!(recovered.records.last().is_none_or(|last| last.number <= recovered.last));
            accepted = found;
            platter.0.lock().fails_in = Some(20 + drawn(&random, 400));
            for _ in 0..4 {
                let group: Vec<u64> = (0..1 + drawn(&random, 5)).map(|n| given + n).collect();
                given += group.len() as u64;
                let numbers = append(&disk, group.iter().copied());
                accepted
                    .extend(group.iter().zip(numbers).filter_map(|(n, number)| number.map(|_| *n)));
                if drawn(&random, 3) == 0 && !accepted.is_empty() {
                    // The sink has the first operations of a partition.
                    let all = records_or_none(&disk).await;
                    let Some(first) =
                        all.first().filter(|first| accepted.contains(&first.draft.created))
                    else {
                        continue;
                    };
                    disk.applied(first.draft.partition, first.number);
                    accepted.retain(|n| *n != first.draft.created);
                }
            }
            let cut = platter.after_power_cut(&random);
            drop(disk);
            platter = cut;
        }
    }
}

async fn records_or_none(disk: &Disk) -> Vec<Record> {
    disk.recover(2).await.map(|recovered| recovered.records).unwrap_or_default()
}

#[tokio::test]
async fn a_full_disk_refuses_operations_and_goes_on_when_there_is_room() {
    let platter = Platter::default();
    let disk = platter.open().unwrap();
    assert_eq!(append(&disk, [1]), [Some(1)]);
    let full = platter.0.lock().seen.len() as u64;
    platter.0.lock().room = Some(full);
    let large = (0..20_000).collect::<Vec<u64>>();
    let refused = append(&disk, large).iter().filter(|number| number.is_none()).count();
    assert!(refused > 0, "the disk was not full");
    platter.0.lock().room = None;
    let before = records(&disk).await.len();
    let after = append(&disk, [2])[0].expect("there is room again");
    let all = records(&disk).await;
    assert_eq!((all.len(), all.last().unwrap().number), (before + 1, after));
    assert_eq!(20_000 - refused + 1, before, "those that were refused are not there");
}

#[tokio::test]
async fn operations_whose_synchronisation_failed_are_removed() {
    let platter = Platter::default();
    let disk = platter.open().unwrap();
    assert_eq!(append(&disk, [1, 2])[1], Some(2));
    platter.0.lock().bad_syncs = 1;
    assert_eq!(append(&disk, [3]), [None]);
    let number = append(&disk, [4])[0].unwrap();
    let found: Vec<u64> = records(&disk).await.iter().map(|record| record.draft.created).collect();
    assert_eq!(found, [1, 2, 4]);
    assert!(number > 2);
    drop(disk);
    let disk = platter.open().unwrap();
    let found: Vec<u64> = records(&disk).await.iter().map(|record| record.draft.created).collect();
    assert_eq!(found, [1, 2, 4]);
}

#[tokio::test]
async fn dead_operations_are_in_one_list_or_the_other() {
    let platter = Platter::default();
    let disk = platter.open().unwrap();
    append(&disk, [1, 2, 3]);
    let record = records(&disk).await[1].clone();
    let dead = DeadRecord { record, error: Some("rejected".to_owned()) };
    disk.bury(vec![dead.clone()]).await.unwrap();
    let recovered = disk.recover(2).await.unwrap();
    assert_eq!((recovered.records.len(), recovered.dead), (2, vec![dead.clone()]));
    assert_eq!(disk.revive(vec![dead.clone()]).await.unwrap(), [4]);
    disk.register(9).await.unwrap();
    disk.discard(vec![1]).await.unwrap();
    drop(disk);
    let disk = platter.open().unwrap();
    let recovered = disk.recover(2).await.unwrap();
    let numbers: Vec<u64> = recovered.records.iter().map(|record| record.number).collect();
    assert_eq!((&*numbers, recovered.dead.len(), recovered.is_registered), (&[3, 4][..], 0, true));
    assert_eq!(append(&disk, [5]), [Some(10)], "above what the sink has");
}

/// A step that fails although the file has it afterwards is undone: the caller was told that it failed.
#[tokio::test]
async fn steps_whose_synchronisation_failed_are_undone() {
    let platter = Platter::default();
    let disk = platter.open().unwrap();
    append(&disk, [1, 2, 3]);
    let all = records(&disk).await;
    let dead = |at: usize| DeadRecord { record: all[at].clone(), error: None };
    disk.bury(vec![dead(0)]).await.unwrap();
    platter.0.lock().bad_syncs = 1;
    assert!(disk.bury(vec![dead(1)]).await.is_err());
    let lists = async || {
        let recovered = disk.recover(2).await.unwrap();
        let dead: Vec<u64> = recovered.dead.iter().map(|dead| dead.record.number).collect();
        (recovered.records.iter().map(|record| record.number).collect::<Vec<_>>(), dead)
    };
    assert_eq!(lists().await, (vec![2, 3], vec![1]));
    platter.0.lock().bad_syncs = 1;
    assert!(disk.revive(vec![dead(0)]).await.is_err());
    assert_eq!(lists().await, (vec![2, 3], vec![1]));
    assert_eq!(disk.revive(vec![dead(0)]).await.unwrap(), [4]);
    assert_eq!(lists().await, (vec![2, 3, 4], vec![]));
}

#[tokio::test]
async fn a_journal_has_one_process_and_its_number_of_partitions() {
    let directory = Directory::new("one-process");
    let disk = Disk::open(&directory.0).unwrap();
    disk.recover(2).await.unwrap();
    let second = Disk::open(&directory.0).unwrap_err();
    let cause = std::error::Error::source(&second).unwrap().to_string();
    assert!(
        second.to_string().contains("cannot be opened") && cause.contains("open"),
        "{second}: {cause}"
    );
    let other = disk.recover(3).await.unwrap_err();
    assert!(other.to_string().contains("has 2 partitions, and the queue asks for 3"), "{other}");
    disk.close().await;
    let torn = directory.0.join("journal.redb");
    std::fs::write(&torn, b"not a journal").unwrap();
    assert!(Disk::open(&directory.0).is_err());
    assert_eq!(std::fs::read(&torn).unwrap(), b"not a journal", "it is not overwritten");
}

/// A directory that is removed at the end of the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("larder-{name}-{}", std::process::id())))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
