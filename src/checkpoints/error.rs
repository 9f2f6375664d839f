//! Why a checkpoint store, a recording or a data set could not be used.

use std::path::{Path, PathBuf};

use crate::layout::LayoutError;
use crate::metric::Metric;
use crate::network::NetworkError;

/// Why a checkpoint store, a recording or a data set could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is nothing at the path.
    #[error("there is no checkpoint store at {path}, record one first")]
    NotFound {
        /// Folder that was asked for.
        path: PathBuf,
    },
    /// There is something else at the path.
    #[error("{path} is no checkpoint store: {problem}")]
    NotAStore {
        /// Folder that was asked for.
        path: PathBuf,
        /// What was found instead.
        problem: String,
    },
    /// A store is at the path, and a new one was to be made.
    #[error("there is a checkpoint store at {path} already, remove it or choose another folder")]
    AlreadyExists {
        /// Folder of the store.
        path: PathBuf,
    },
    /// The data file is shorter than what was written to it.
    #[error(
        "checkpoint store {path} is cut off: data.mdb holds {found} bytes, expected at least \
         {expected}; copy it again, or record again"
    )]
    Truncated {
        /// Folder of the store.
        path: PathBuf,
        /// Bytes in the file.
        found: u64,
        /// Bytes that must be there.
        expected: u64,
    },
    /// What the store holds contradicts itself.
    #[error("checkpoint store {path} is damaged: {problem}; copy it again, or record again")]
    Damaged {
        /// Folder of the store.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The store was written by a later version of lopt.
    #[error(
        "checkpoint store {path} has format version {found}, this lopt reads up to {supported}: \
         use a newer lopt"
    )]
    NewerFormat {
        /// Folder of the store.
        path: PathBuf,
        /// Version of the store.
        found: u64,
        /// Highest version that can be read.
        supported: u64,
    },
    /// The store holds checkpoints of another network.
    #[error("checkpoint store {path} holds another network")]
    Layout {
        /// Folder of the store.
        path: PathBuf,
        /// The first difference; "found" is what the store holds.
        source: Box<LayoutError>,
    },
    /// The store was made for something else.
    #[error("checkpoint store {path} has {what} {found}, expected {expected}")]
    Mismatch {
        /// Folder of the store.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the store has.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// Another store handle, maybe of another process, writes to the store.
    #[error(
        "checkpoint store {path} is being written to by another process, or by another handle \
         in this one: wait for it, or open the store for reading"
    )]
    BeingWritten {
        /// Folder of the store.
        path: PathBuf,
    },
    /// The folder was removed while this process had the store open.
    #[error(
        "the checkpoint store that was at {path} is still open in this process: drop its handles \
         before you make a new one"
    )]
    StillOpen {
        /// Folder of the store.
        path: PathBuf,
    },
    /// The store was opened for reading.
    #[error("checkpoint store {path} was opened for reading, open it with `open_or_create`")]
    ReadOnly {
        /// Folder of the store.
        path: PathBuf,
    },
    /// A run of that number was recorded before.
    #[error("run {id} is in the store already, choose another number")]
    RunExists {
        /// Number of the run.
        id: u64,
    },
    /// There are no checkpoints of that run.
    #[error("the store holds no checkpoints of run {id}")]
    RunMissing {
        /// Number of the run.
        id: u64,
    },
    /// A checkpoint does not have as many parameters as the network.
    #[error("checkpoint of run {id} has {found} parameters, expected {expected}")]
    ParameterCount {
        /// Number of the run.
        id: u64,
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// The parameters of a model could not be read.
    #[error("cannot read the model of run {id}")]
    Network {
        /// Number of the run.
        id: u64,
        /// What is wrong with the model.
        source: Box<NetworkError>,
    },
    /// A checkpoint does not have one value for each metric.
    #[error("checkpoint of run {id} has {found} metrics, expected {expected}: {names}")]
    MetricCount {
        /// Number of the run.
        id: u64,
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
        /// The metrics of the store.
        names: String,
    },
    /// Checkpoints were not recorded in order.
    #[error("run {id} records iteration {found} after iteration {previous}, expected a later one")]
    Iteration {
        /// Number of the run.
        id: u64,
        /// Iteration of the new checkpoint.
        found: u64,
        /// Iteration of the checkpoint before it.
        previous: u64,
    },
    /// The recording was told to stop.
    #[error("recording of run {id} was cancelled")]
    Cancelled {
        /// Number of the run.
        id: u64,
    },
    /// The store does not hold a metric.
    #[error("the store does not hold {metric}, expected one of: {available}")]
    MetricMissing {
        /// Metric asked for.
        metric: Metric,
        /// Metrics of the store.
        available: String,
    },
    /// There are not enough runs.
    #[error("{found} runs {purpose}, expected at least {expected}: record more runs")]
    TooFewRuns {
        /// Runs found.
        found: usize,
        /// Runs needed.
        expected: usize,
        /// What they are needed for.
        purpose: &'static str,
    },
    /// A setting cannot be used.
    #[error("{setting} is {found}, expected {expected}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// Its value.
        found: String,
        /// Values that can be used.
        expected: &'static str,
    },
    /// The disk is full, or a quota or file size limit is reached.
    #[error(
        "no room left to write to checkpoint store {path}: free some and go on, every finished \
         run is intact"
    )]
    DiskFull {
        /// Folder of the store.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Only a part of the data was written. A full disk shows up so as well.
    #[error(
        "could not write all of a run to checkpoint store {path}: the disk is full or failing; \
         every finished run is intact"
    )]
    ShortWrite {
        /// Folder of the store.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The process has no address space left to map the store into.
    #[error(
        "checkpoint store {path} has outgrown the address space of this process: raise its limit \
         (ulimit -v)"
    )]
    MapFull {
        /// Folder of the store.
        path: PathBuf,
    },
    /// A file or folder could not be used.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// File or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The data base reported an error.
    #[error("checkpoint store {path} cannot be used")]
    Database {
        /// Folder of the store.
        path: PathBuf,
        /// What LMDB said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    pub(super) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// What an error of LMDB means to a user of the store at `path`.
    pub(super) fn database(path: &Path) -> impl Fn(heed::Error) -> Self + '_ {
        use heed::MdbError as M;
        use std::io::ErrorKind as K;
        let damaged =
            |problem: &str| Self::Damaged { path: path.to_owned(), problem: problem.into() };
        move |error| match error {
            heed::Error::Mdb(M::MapFull | M::MapResized) => Self::MapFull { path: path.to_owned() },
            heed::Error::Mdb(M::Corrupted | M::PageNotFound) => damaged("its pages do not fit"),
            heed::Error::Mdb(M::Invalid | M::VersionMismatch) => Self::NotAStore {
                path: path.to_owned(),
                problem: "data.mdb is not an LMDB file that this LMDB can read".into(),
            },
            heed::Error::Io(source) => match source.kind() {
                K::StorageFull | K::QuotaExceeded | K::FileTooLarge => {
                    Self::DiskFull { path: path.to_owned(), source }
                }
                // LMDB reports a short write, as on a full disk, as EIO.
                _ if source.raw_os_error() == Some(5) => {
                    Self::ShortWrite { path: path.to_owned(), source }
                }
                _ => Self::Io { action: "use checkpoint store", path: path.to_owned(), source },
            },
            other => Self::Database { path: path.to_owned(), source: Box::new(other) },
        }
    }
}
