//! LMDB environments: opened after a look at the file, shared within a process,
//! locked for one writer.
//!
//! # Durability
//! LMDB is used with its default, synchronous commits: the pages of a
//! transaction are on the disk before the one page that makes them count is
//! written, and that page is on the disk when the commit returns. A process
//! that is killed loses nothing that was committed under any setting; this one
//! keeps it through a power failure too, for a few milliseconds a run.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, RoTxn, RwTxn, WithoutTls};

use super::datafile::{DataFile, DATA_FILE};
use super::StoreError;

const LOCK_FILE: &str = "writer.lock";
const NEW_FOLDER: &str = ".new";

/// Address space that is set aside for a store: far more than one will ever
/// hold, so that nobody meets a full map. It costs no memory and no disk: the
/// file grows with what is written.
const MAP_SIZE: usize = 1 << (if usize::BITS >= 64 { 40 } else { 30 });
/// Where the address space is limited, no less than this is tried.
const MIN_MAP_SIZE: usize = 1 << 28;

/// An open LMDB environment with one unnamed database.
pub(super) struct Environment {
    env: Env<WithoutTls>,
    database: Database<'static, Bytes, Bytes>,
    path: PathBuf,
}

/// Environments that are open in this process: LMDB does not allow a file to be
/// mapped twice by one process, so that handles to one store share one.
static OPEN: LazyLock<Mutex<HashMap<PathBuf, Weak<Environment>>>> = LazyLock::new(Mutex::default);

impl Environment {
    /// Opens the environment in folder `path`, as it is used by this process already or anew.
    pub(super) fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        let mut file = DataFile::open(path)?;
        let key = path.canonicalize().map_err(StoreError::io("find", path))?;
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(environment) = open.get(&key).and_then(Weak::upgrade) {
            return Ok(environment);
        }
        // Another thread may be about to close it.
        if let Some(closing) = heed::env_closing_event(&key) {
            closing.wait_timeout(Duration::from_secs(10));
        }
        let environment = Arc::new(Self::open_anew(path)?);
        environment.check_pages(&mut file)?;
        open.retain(|_, other| other.strong_count() > 0);
        open.insert(key, Arc::downgrade(&environment));
        Ok(environment)
    }

    /// Makes a folder `path` with an environment that `fill` has put something
    /// into. The data file appears in one piece, when all is in it.
    ///
    /// The caller holds the writer's lock.
    pub(super) fn create(
        path: &Path,
        fill: impl FnOnce(&Self, &mut RwTxn) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let key = path.canonicalize().map_err(StoreError::io("find", path))?;
        let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        // Otherwise `open` would return the one that was removed.
        if open.get(&key).is_some_and(|old| old.strong_count() > 0) {
            return Err(StoreError::StillOpen { path: path.to_owned() });
        }
        drop(open);
        let new = path.join(NEW_FOLDER);
        if new.exists() {
            fs::remove_dir_all(&new).map_err(StoreError::io("clear", &new))?;
        }
        fs::create_dir(&new).map_err(StoreError::io("create folder", &new))?;
        let environment = Self::open_anew(&new)?;
        environment.write(|txn| fill(&environment, txn))?;
        environment.env.prepare_for_closing().wait();
        let (from, to) = (new.join(DATA_FILE), path.join(DATA_FILE));
        fs::rename(from, &to).map_err(StoreError::io("create", &to))?;
        fs::remove_dir_all(&new).map_err(StoreError::io("remove", &new))?;
        sync_folder(path).map_err(StoreError::io("create", path))
    }

    fn open_anew(path: &Path) -> Result<Self, StoreError> {
        let mut size = MAP_SIZE;
        let env = loop {
            match open_env(path, size, EnvFlags::empty()) {
                Err(heed::Error::Io(e)) if e.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
                    break open_env(path, size, EnvFlags::READ_ONLY);
                }
                Err(heed::Error::Io(e))
                    if e.kind() == std::io::ErrorKind::OutOfMemory && size / 2 >= MIN_MAP_SIZE =>
                {
                    size /= 2;
                }
                other => break other,
            }
        }
        .map_err(StoreError::database(path))?;
        let database = {
            let txn = env.read_txn().map_err(StoreError::database(path))?;
            env.open_databases_and_commit(txn, |open, txn| {
                open.open_database(txn, None).map(CommitOrAbort::<_, ()>::Commit)
            })
            .map_err(StoreError::database(path))?
            .commit()
            .flatten()
            .ok_or_else(|| StoreError::NotAStore {
                path: path.to_owned(),
                problem: "data.mdb has no unnamed database".into(),
            })?
        };
        // Slots that killed readers have left.
        env.clear_stale_readers().map_err(StoreError::database(path))?;
        Ok(Self { env, database, path: path.to_owned() })
    }

    /// Checks the pages of the newest snapshot.
    fn check_pages(&self, file: &mut DataFile) -> Result<(), StoreError> {
        // A snapshot is replaced when a writer has committed twice since, which
        // takes it far longer than it takes to read the meta pages.
        for _ in 0..100 {
            let txn = self.env.read_txn().map_err(self.error())?;
            if file.check_pages(txn.id() as u64)? {
                return Ok(());
            }
        }
        let problem = "its meta pages do not match".into();
        Err(StoreError::Damaged { path: self.path.clone(), problem })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `read` on a snapshot.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&RoTxn) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let txn = self.env.read_txn().map_err(self.error())?;
        read(&txn)
    }

    /// Runs `write` in a transaction that counts as a whole if it succeeds, and
    /// not at all if it fails. Waits for the write of another thread.
    pub(super) fn write<T>(
        &self,
        write: impl FnOnce(&mut RwTxn) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut txn = self.env.write_txn().map_err(self.error())?;
        let result = write(&mut txn)?;
        txn.commit().map_err(self.error())?;
        Ok(result)
    }

    pub(super) fn get<'t>(
        &self,
        txn: &'t RoTxn,
        key: &[u8],
    ) -> Result<Option<&'t [u8]>, StoreError> {
        self.database.get(txn, key).map_err(self.error())
    }

    pub(super) fn put(&self, txn: &mut RwTxn, key: &[u8], data: &[u8]) -> Result<(), StoreError> {
        self.database.put(txn, key, data).map_err(self.error())
    }

    /// Calls `visit` for every entry whose key starts with `prefix`.
    pub(super) fn for_each(
        &self,
        txn: &RoTxn,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for entry in self.database.prefix_iter(txn, prefix).map_err(self.error())? {
            let (key, data) = entry.map_err(self.error())?;
            visit(key, data)?;
        }
        Ok(())
    }

    /// Bytes of the data file.
    pub(super) fn file_size(&self) -> Result<u64, StoreError> {
        self.env.real_disk_size().map_err(self.error())
    }

    fn error(&self) -> impl Fn(heed::Error) -> StoreError + '_ {
        StoreError::database(&self.path)
    }
}

#[allow(unsafe_code)]
fn open_env(path: &Path, size: usize, flags: EnvFlags) -> heed::Result<Env<WithoutTls>> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(size).max_readers(512);
    // SAFETY: READ_ONLY is the only flag that is ever set; it is none of those
    // that are unsafe (no sync, no lock).
    unsafe { options.flags(flags) };
    // SAFETY: the file is mapped, so nothing but LMDB may change or shorten it
    // while it is open. lopt only touches it through LMDB, which locks it; its
    // length has been checked against its content; and that no other program
    // writes into the folder of an open store is asked for in `Store`'s
    // documentation.
    unsafe { options.open(path) }
}

/// The exclusive right to write to a store, given back when dropped or when the
/// process ends in whatever way.
#[derive(Debug)]
pub(super) struct WriterLock {
    file: File,
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        // Closing alone would leave the lock to a process that was forked
        // meanwhile and has not started its program yet.
        let _ = self.file.unlock();
    }
}

impl WriterLock {
    /// Takes the lock of the folder `path`.
    pub(super) fn take(path: &Path) -> Result<Self, StoreError> {
        let name = path.join(LOCK_FILE);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&name)
            .map_err(StoreError::io("open", &name))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => {
                Err(StoreError::BeingWritten { path: path.to_owned() })
            }
            Err(TryLockError::Error(source)) => {
                Err(StoreError::Io { action: "lock", path: name, source })
            }
        }
    }
}

/// Whether the folder `path` holds a data file.
pub(super) fn has_data(path: &Path) -> bool {
    path.join(DATA_FILE).exists()
}

/// Makes the entries of a folder durable.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        File::open(path)?.sync_all()?;
    }
    Ok(())
}
