//! A store of recorded runs on disk.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use flate2::Crc;
use heed::RoTxn;
use serde::{Deserialize, Serialize};

use super::environment::{has_data, Environment, WriterLock};
use super::recorder::{DropReason, Run};
use super::{Metadata, Parameters, StoreError};

/// Changes when older versions of lopt could not read a store any more.
const VERSION: u64 = 1;
const FORMAT: &str = "lopt checkpoints";
const METADATA_KEY: &[u8] = b"metadata";
const RUNS: &[u8] = b"run/";
const SCORES: &[u8] = b"met/";
const PARAMETERS: &[u8] = b"par/";
/// Parameters of a run are stored in pieces of whole checkpoints that are about
/// this long at most: LMDB takes up to 4 GiB.
const PIECE: usize = 16 << 20;

/// What is known of a run before it starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Number of the run in the store. Runs are ordered by it: the last ones
    /// are held out.
    pub id: u64,
    /// Seed of the run.
    pub seed: u64,
    /// What else the run was made with, such as its learning rate.
    pub hyperparameters: serde_json::Value,
}

impl RunInfo {
    /// A run without hyperparameters.
    pub fn new(id: u64, seed: u64) -> Self {
        Self { id, seed, hyperparameters: serde_json::Value::Null }
    }
}

/// How a finished run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum RunStatus {
    /// Its checkpoints are in the store.
    Kept {
        /// Number of checkpoints.
        checkpoints: usize,
    },
    /// Only the fact that it was made is in the store.
    Dropped {
        /// What was wrong with it.
        reason: DropReason,
    },
}

/// A finished run as the store lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunEntry {
    /// What was known of it before it started.
    #[serde(flatten)]
    pub info: RunInfo,
    /// How it ended.
    #[serde(flatten)]
    pub status: RunStatus,
    /// CRC-32 of its checkpoints, 0 for a dropped run.
    checksum: u32,
}

impl RunEntry {
    /// Number of checkpoints in the store, 0 for a dropped run.
    pub fn checkpoints(&self) -> usize {
        match self.status {
            RunStatus::Kept { checkpoints } => checkpoints,
            RunStatus::Dropped { .. } => 0,
        }
    }
}

/// A run with its checkpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedRun {
    /// What the store lists of it.
    pub entry: RunEntry,
    /// Iteration of each checkpoint.
    pub iterations: Vec<u64>,
    /// Metrics of the checkpoints, `[checkpoint][metric]`, in the order of
    /// [`Metadata::metrics`].
    pub metrics: Vec<f64>,
    /// Parameters of the checkpoints, `[checkpoint][parameter]`.
    pub parameters: Parameters,
}

/// Checkpoints of a run that is about to be stored.
pub(super) struct Recorded {
    pub iterations: Vec<u64>,
    pub metrics: Vec<f64>,
    pub parameters: Parameters,
}

/// A folder with recorded runs.
///
/// A run is written in one transaction when it is finished, so a process that
/// is killed at any moment leaves all finished runs, and nothing of the others.
/// One handle at a time may write, any number of handles, of this process and
/// others, may read meanwhile. The handle is cheap to clone, and clones write
/// as one.
///
/// The file in the folder is mapped into memory: nothing else may write to it
/// or shorten it while it is open, and it must not lie on a network file
/// system.
///
/// # Examples
/// ```
/// use lopt::checkpoints::{Metadata, Outcome, RunInfo, Store};
/// use lopt::layout::{LayoutBuilder, Role};
/// use lopt::metric::Metric;
///
/// let folder = tempfile::tempdir()?;
/// let mut layout = LayoutBuilder::new();
/// layout.tensor("weight", &[3], Role::Weight);
/// let metadata = Metadata::new("slope", layout.finish()?, vec![Metric::VALIDATION_LOSS]);
///
/// let store = Store::open_or_create(folder.path(), metadata)?;
/// let mut run = store.begin_run(RunInfo::new(0, 42))?;
/// run.record_flat(&[0.0, 0.0, 0.0], &[2.5])?;
/// run.record_flat(&[0.1, 0.2, 0.3], &[0.5])?;
/// assert_eq!(run.finish()?, Outcome::Kept { checkpoints: 2 });
///
/// assert_eq!(store.read_run(0)?.metrics, [2.5, 0.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    environment: Arc<Environment>,
    metadata: Metadata,
    writer: Option<WriterLock>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.environment.path())
            .field("task", &self.metadata.task)
            .field("writer", &self.writer.is_some())
            .finish()
    }
}

impl Store {
    /// Makes a new store in the folder `path`, and opens it for writing.
    ///
    /// # Errors
    /// If there is a store already, the metadata cannot be used, or the folder
    /// cannot be written to.
    pub fn create(path: impl AsRef<Path>, metadata: Metadata) -> Result<Self, StoreError> {
        let path = path.as_ref();
        metadata.validate()?;
        let writer = lock(path)?;
        if has_data(path) {
            return Err(StoreError::AlreadyExists { path: path.to_owned() });
        }
        Self::create_locked(path, &metadata)?;
        Self::open_with(path, Some(writer))
    }

    /// Opens the store in the folder `path` for reading.
    ///
    /// # Errors
    /// If there is no store, or it is cut off, damaged or written by a later
    /// version.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(path.as_ref(), None)
    }

    /// Opens the store in the folder `path` for writing, or makes a new one if
    /// there is none.
    ///
    /// # Errors
    /// As [`Store::create`] and [`Store::open`], and if another handle writes
    /// to the store, or the store was made with another task, layout, list of
    /// metrics, precision or filter. The provenance may differ: the store keeps
    /// its own.
    pub fn open_or_create(path: impl AsRef<Path>, metadata: Metadata) -> Result<Self, StoreError> {
        let path = path.as_ref();
        metadata.validate()?;
        let writer = lock(path)?;
        if !has_data(path) {
            Self::create_locked(path, &metadata)?;
        }
        let store = Self::open_with(path, Some(writer))?;
        store.metadata().check_matches(&metadata, path)?;
        Ok(store)
    }

    fn create_locked(path: &Path, metadata: &Metadata) -> Result<(), StoreError> {
        let header = Header { format: FORMAT.into(), version: VERSION };
        let stored = Stored { header, metadata: metadata.clone() };
        Environment::create(path, |environment, txn| {
            environment.put(txn, METADATA_KEY, &to_json(path, &stored)?)
        })
    }

    fn open_with(path: &Path, writer: Option<WriterLock>) -> Result<Self, StoreError> {
        let environment = Environment::open(path)?;
        let metadata = environment.read(|txn| {
            let json = environment.get(txn, METADATA_KEY)?;
            let header = json.and_then(|json| serde_json::from_slice::<Header>(json).ok());
            let (Some(json), Some(header)) = (json, header.filter(|h| h.format == FORMAT)) else {
                let problem = "data.mdb was not written by lopt".into();
                return Err(StoreError::NotAStore { path: path.to_owned(), problem });
            };
            if header.version > VERSION {
                let (found, supported) = (header.version, VERSION);
                return Err(StoreError::NewerFormat { path: path.to_owned(), found, supported });
            }
            let stored: Stored = from_json(path, "metadata", json)?;
            stored.metadata.validate()?;
            Ok(stored.metadata)
        })?;
        Ok(Self { shared: Arc::new(Shared { environment, metadata, writer }) })
    }

    /// What all checkpoints have in common.
    pub fn metadata(&self) -> &Metadata {
        &self.shared.metadata
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.shared.environment.path()
    }

    /// Whether this handle may write.
    pub fn is_writer(&self) -> bool {
        self.shared.writer.is_some()
    }

    /// Bytes of the data file.
    ///
    /// # Errors
    /// If the file cannot be examined.
    pub fn bytes(&self) -> Result<u64, StoreError> {
        self.shared.environment.file_size()
    }

    /// All finished runs, ordered by number.
    ///
    /// # Errors
    /// If the store cannot be read or is damaged.
    pub fn runs(&self) -> Result<Vec<RunEntry>, StoreError> {
        let mut runs = Vec::new();
        self.shared.environment.read(|txn| {
            self.shared.environment.for_each(txn, RUNS, |_, json| {
                runs.push(from_json(self.path(), "the list of runs", json)?);
                Ok(())
            })
        })?;
        Ok(runs)
    }

    /// One finished run, or `None` if the store does not have it.
    ///
    /// # Errors
    /// If the store cannot be read or is damaged.
    pub fn run(&self, id: u64) -> Result<Option<RunEntry>, StoreError> {
        self.shared.environment.read(|txn| self.entry(txn, id))
    }

    /// A kept run with its checkpoints.
    ///
    /// # Errors
    /// If the store does not have the run or has dropped it, cannot be read or
    /// is damaged.
    pub fn read_run(&self, id: u64) -> Result<RecordedRun, StoreError> {
        let entry = self.run(id)?.filter(|entry| entry.checkpoints() > 0);
        let entry = entry.ok_or(StoreError::RunMissing { id })?;
        let len = self.num_values(entry.checkpoints())?;
        let mut parameters = Parameters::zeros(self.metadata().precision, len);
        let (iterations, metrics) = self.read_into(&entry, Some(parameters.bytes_mut()))?;
        Ok(RecordedRun { entry, iterations, metrics, parameters })
    }

    /// Starts to record a run. Nothing of it is in the store before
    /// [`Run::finish`].
    ///
    /// # Errors
    /// If the store was opened for reading, or has a run of that number.
    pub fn begin_run(&self, info: RunInfo) -> Result<Run, StoreError> {
        self.check_writer()?;
        if self.run(info.id)?.is_some() {
            return Err(StoreError::RunExists { id: info.id });
        }
        Ok(Run::new(self.clone(), info))
    }

    pub(super) fn check_writer(&self) -> Result<(), StoreError> {
        if !self.is_writer() {
            return Err(StoreError::ReadOnly { path: self.path().to_owned() });
        }
        Ok(())
    }

    /// Number of parameters of so many checkpoints.
    ///
    /// # Errors
    /// If the data file does not have room for them: memory must not be set aside
    /// on the word of a damaged entry.
    pub(super) fn num_values(&self, checkpoints: usize) -> Result<usize, StoreError> {
        let metadata = self.metadata();
        let values = checkpoints.checked_mul(metadata.layout.num_parameters());
        let bytes = values.and_then(|n| n.checked_mul(metadata.precision.bytes()));
        let room = self.bytes()?;
        values.filter(|_| bytes.is_some_and(|n| n as u64 <= room)).ok_or_else(|| {
            let problem = format!("it lists {checkpoints} checkpoints, more than it has room for");
            StoreError::Damaged { path: self.path().to_owned(), problem }
        })
    }

    /// Iterations and metrics of a kept run, and its parameters as bytes if
    /// they are wanted.
    pub(super) fn read_into(
        &self,
        entry: &RunEntry,
        parameters: Option<&mut [u8]>,
    ) -> Result<(Vec<u64>, Vec<f64>), StoreError> {
        let id = entry.info.id;
        let damaged = || StoreError::Damaged {
            path: self.path().to_owned(),
            problem: format!("the checkpoints of run {id} are not what was recorded"),
        };
        let environment = &self.shared.environment;
        environment.read(|txn| {
            let scores = environment.get(txn, &key(SCORES, id))?.ok_or_else(damaged)?;
            let row = 8 * (1 + self.metadata().metrics.len());
            if Some(scores.len()) != row.checked_mul(entry.checkpoints()) {
                return Err(damaged());
            }
            let mut crc = Crc::new();
            crc.update(scores);
            let (iterations, metrics) = scores.split_at(8 * entry.checkpoints());
            let iterations = iterations.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
            let metrics = metrics.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
            if let Some(bytes) = parameters {
                for (i, piece) in bytes.chunks_mut(self.piece_len()).enumerate() {
                    let found = environment.get(txn, &piece_key(id, i))?.ok_or_else(damaged)?;
                    if found.len() != piece.len() {
                        return Err(damaged());
                    }
                    piece.copy_from_slice(found);
                    crc.update(found);
                }
                if crc.sum() != entry.checksum {
                    return Err(damaged());
                }
            }
            Ok((iterations, metrics))
        })
    }

    /// Writes a finished run, in one transaction.
    pub(super) fn write_kept(&self, info: RunInfo, run: &Recorded) -> Result<(), StoreError> {
        let id = info.id;
        let mut scores = bytemuck::cast_slice::<u64, u8>(&run.iterations).to_vec();
        scores.extend_from_slice(bytemuck::cast_slice(&run.metrics));
        let mut crc = Crc::new();
        crc.update(&scores);
        crc.update(run.parameters.bytes());
        let status = RunStatus::Kept { checkpoints: run.iterations.len() };
        let entry = RunEntry { info, status, checksum: crc.sum() };
        let environment = &self.shared.environment;
        environment.write(|txn| {
            self.write_entry(txn, &entry)?;
            environment.put(txn, &key(SCORES, id), &scores)?;
            for (i, piece) in run.parameters.bytes().chunks(self.piece_len()).enumerate() {
                environment.put(txn, &piece_key(id, i), piece)?;
            }
            Ok(())
        })
    }

    /// Writes that a run was dropped.
    pub(super) fn write_dropped(
        &self,
        info: RunInfo,
        reason: DropReason,
    ) -> Result<(), StoreError> {
        let status = RunStatus::Dropped { reason };
        let entry = RunEntry { info, status, checksum: 0 };
        self.shared.environment.write(|txn| self.write_entry(txn, &entry))
    }

    fn write_entry(&self, txn: &mut heed::RwTxn, entry: &RunEntry) -> Result<(), StoreError> {
        let id = entry.info.id;
        if self.entry(txn, id)?.is_some() {
            return Err(StoreError::RunExists { id });
        }
        self.shared.environment.put(txn, &key(RUNS, id), &to_json(self.path(), entry)?)
    }

    fn entry(&self, txn: &RoTxn, id: u64) -> Result<Option<RunEntry>, StoreError> {
        let json = self.shared.environment.get(txn, &key(RUNS, id))?;
        json.map(|json| from_json(self.path(), "the list of runs", json)).transpose()
    }

    /// Bytes of a piece of the parameters of a run: whole checkpoints.
    fn piece_len(&self) -> usize {
        let checkpoint =
            self.metadata().layout.num_parameters() * self.metadata().precision.bytes();
        checkpoint * (PIECE / checkpoint).max(1)
    }
}

/// First half of what is stored under the metadata key: enough to tell whether
/// the other half can be read.
#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    header: Header,
    metadata: Metadata,
}

fn lock(path: &Path) -> Result<WriterLock, StoreError> {
    if path.exists() && !path.is_dir() {
        let problem = "it is a file, expected a folder".into();
        return Err(StoreError::NotAStore { path: path.to_owned(), problem });
    }
    fs::create_dir_all(path).map_err(StoreError::io("create folder", path))?;
    WriterLock::take(path)
}

/// Big-endian, so that LMDB orders runs by their numbers.
fn key(prefix: &[u8], id: u64) -> Vec<u8> {
    [prefix, &id.to_be_bytes()].concat()
}

fn piece_key(id: u64, piece: usize) -> Vec<u8> {
    [PARAMETERS, &id.to_be_bytes(), &(piece as u64).to_be_bytes()].concat()
}

fn to_json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value)
        .map_err(|e| StoreError::Database { path: path.to_owned(), source: Box::new(e) })
}

fn from_json<T: for<'a> Deserialize<'a>>(
    path: &Path,
    what: &str,
    json: &[u8],
) -> Result<T, StoreError> {
    serde_json::from_slice(json).map_err(|e| StoreError::Damaged {
        path: path.to_owned(),
        problem: format!("{what} cannot be read: {e}"),
    })
}
