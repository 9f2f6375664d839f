//! Examines LMDB's data file by reading it, before LMDB maps it.
//!
//! LMDB trusts its file: an empty one is silently turned into an empty
//! environment, and a page that is cut off or overwritten kills the process
//! when it is touched (SIGBUS, SIGSEGV). So every page that LMDB may touch is
//! looked at first: the meta pages, the two trees that they point to, and the
//! headers of the runs of pages that hold long values. That reads a few bytes
//! for each long value, not the values.
//!
//! # Source
//! LMDB 0.9.70 (data version 1), mdb.c: `MDB_page`, `MDB_node`, `MDB_meta`,
//! `MDB_db`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::StoreError;

pub(super) const DATA_FILE: &str = "data.mdb";

const WORD: usize = size_of::<usize>();
/// Bytes before the content of a page: number, padding, flags, bounds.
const PAGE_HEADER: usize = WORD + 8;
/// Bytes before the key of an entry: length or page (4), flags, length of the key.
const NODE_HEADER: usize = 8;
const TREE: usize = 8 + 5 * WORD;
const TREES: usize = PAGE_HEADER + 8 + 2 * WORD;
const META_LEN: usize = TREES + 2 * TREE + 2 * WORD;

const MAGIC: u32 = 0xBEEF_C0DE;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const META: u16 = 0x08;
const LONG_VALUE: u16 = 0x01;
/// A tree that is empty has no root.
const NO_PAGE: u64 = usize::MAX as u64;
/// Depth of LMDB's cursors.
const MAX_DEPTH: u16 = 32;

/// The data file of a store, open for reading.
pub(super) struct DataFile {
    file: File,
    folder: PathBuf,
    name: PathBuf,
}

/// What a meta page says.
#[derive(Clone, Copy)]
struct Meta {
    page_size: u64,
    free: Tree,
    main: Tree,
    last_page: u64,
    transaction: u64,
}

#[derive(Clone, Copy)]
struct Tree {
    flags: u16,
    depth: u16,
    root: u64,
}

impl DataFile {
    /// Opens the file in folder `path`, and checks that LMDB can open it.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::NotFound { path: path.to_owned() });
        }
        let folder = path.to_owned();
        if !path.is_dir() {
            let problem = "it is a file, expected a folder".into();
            return Err(StoreError::NotAStore { path: folder, problem });
        }
        let name = path.join(DATA_FILE);
        if !name.exists() {
            let problem = "the folder holds no data.mdb".into();
            return Err(StoreError::NotAStore { path: folder, problem });
        }
        let file = File::open(&name).map_err(StoreError::io("open", &name))?;
        let mut data = Self { file, folder, name };
        let [meta, _] = data.metas()?;
        let mut pages = vec![0; 2 * meta.page_size as usize];
        data.read(0, &mut pages)?;
        Ok(data)
    }

    /// Checks every page that LMDB may touch in the snapshot of a transaction.
    /// The snapshot must be in use meanwhile, so that its pages are not used anew.
    ///
    /// Returns false if the snapshot is not one of the last two.
    pub(super) fn check_pages(&mut self, transaction: u64) -> Result<bool, StoreError> {
        let metas = self.metas()?;
        let Some(&meta) = metas.iter().find(|meta| meta.transaction == transaction) else {
            return Ok(false);
        };
        let length = self.file.metadata().map_err(StoreError::io("examine", &self.name))?.len();
        // A damaged meta page must not make us set memory aside for more.
        if meta.last_page > length / 256 {
            let expected = meta.last_page.saturating_mul(meta.page_size);
            return Err(self.truncated(length, expected));
        }
        if meta.main.flags != 0 {
            let problem = "data.mdb was not written by lopt".into();
            return Err(StoreError::NotAStore { path: self.folder.clone(), problem });
        }
        let mut used = vec![false; meta.last_page as usize + 1];
        used[..2].fill(true);
        self.check_tree(&meta, meta.main, &mut used, None)?;
        let mut free = Vec::new();
        self.check_tree(&meta, meta.free, &mut used, Some(&mut free))?;
        for page in free {
            match used.get_mut(page as usize) {
                Some(used) if !*used => *used = true,
                _ => return Err(self.damaged("lists a page as free that is not")),
            }
        }
        Ok(true)
    }

    /// Walks a tree, and marks its pages as used. Numbers of free pages, which
    /// are the values of the first tree, are added to `free`.
    fn check_tree(
        &mut self,
        meta: &Meta,
        tree: Tree,
        used: &mut [bool],
        mut free: Option<&mut Vec<u64>>,
    ) -> Result<(), StoreError> {
        let size = meta.page_size as usize;
        let mut stack = Vec::new();
        if tree.root != NO_PAGE {
            stack.push((tree.root, 1));
        }
        let mut bytes = vec![0; size];
        while let Some((number, depth)) = stack.pop() {
            self.mark(number, 1, used)?;
            self.read(number * meta.page_size, &mut bytes)?;
            let page = Page(&bytes);
            let (lower, upper) = (usize::from(page.u16(WORD + 4)), usize::from(page.u16(WORD + 6)));
            let leaf = depth == tree.depth;
            let kind = if leaf { LEAF } else { BRANCH };
            let bounds = PAGE_HEADER < lower && lower <= upper && upper <= size;
            if page.word(0) != number || page.u16(WORD + 2) != kind || !bounds || lower % 2 != 0 {
                return Err(self.damaged("has a page that is none"));
            }
            // LMDB aborts where a branch of the tree of values does not branch.
            if !leaf && free.is_none() && lower - PAGE_HEADER < 2 * 2 {
                return Err(self.damaged("has a branch that is none"));
            }
            for slot in (PAGE_HEADER..lower).step_by(2) {
                let node = usize::from(page.u16(slot));
                if node < upper || node + NODE_HEADER > size {
                    return Err(self.damaged("has an entry outside of its page"));
                }
                let (low, flags) = (u64::from(page.node_len(node)), page.u16(node + 4));
                let data = node + NODE_HEADER + usize::from(page.u16(node + 6));
                if data > size {
                    return Err(self.damaged("has a key outside of its page"));
                }
                if !leaf {
                    // The flags are the upper bits of the page's number.
                    let high = if WORD == 8 { u64::from(flags) << 32 } else { 0 };
                    stack.push((low | high, depth + 1));
                    continue;
                }
                // Other flags point to trees in trees, which lopt does not write.
                if flags & !LONG_VALUE != 0 {
                    return Err(self.damaged("has an entry of an unknown kind"));
                }
                let in_page = if flags & LONG_VALUE == 0 { low } else { WORD as u64 };
                if data as u64 + in_page > size as u64 {
                    return Err(self.damaged("has a value outside of its page"));
                }
                let long = flags & LONG_VALUE != 0;
                let value = if long {
                    let number = page.word(data);
                    self.check_long_value(meta, number, low, used)?;
                    number.saturating_mul(meta.page_size) + PAGE_HEADER as u64
                } else {
                    number * meta.page_size + data as u64
                };
                if let Some(free) = free.as_deref_mut() {
                    self.read_free_pages(value, low, free)?;
                }
            }
        }
        Ok(())
    }

    /// Checks the pages of a value of `length` bytes that does not fit into a leaf.
    fn check_long_value(
        &mut self,
        meta: &Meta,
        number: u64,
        length: u64,
        used: &mut [bool],
    ) -> Result<(), StoreError> {
        let count = (PAGE_HEADER as u64 + length).div_ceil(meta.page_size);
        self.mark(number, count, used)?;
        let mut header = [0; PAGE_HEADER];
        self.read(number * meta.page_size, &mut header)?;
        let header = Page(&header);
        let pages = u64::from(header.u32(WORD + 4));
        if header.word(0) != number || header.u16(WORD + 2) != OVERFLOW || pages < count {
            return Err(self.damaged("has a long value that is none"));
        }
        // The last byte is in the file.
        self.read((number + count) * meta.page_size - 1, &mut [0])
    }

    /// Reads a list of free pages: their count, then their numbers.
    fn read_free_pages(
        &mut self,
        offset: u64,
        length: u64,
        free: &mut Vec<u64>,
    ) -> Result<(), StoreError> {
        let mut bytes = vec![0; length as usize];
        self.read(offset, &mut bytes)?;
        let mut words = bytes.chunks_exact(WORD).map(|word| Page(word).word(0));
        let count = words.next().unwrap_or(u64::MAX);
        free.extend(words.take(usize::try_from(count).unwrap_or(usize::MAX)));
        if count >= length / WORD as u64 {
            return Err(self.damaged("has a list of free pages that is none"));
        }
        Ok(())
    }

    /// Marks `count` pages as used, which must be there and must not be in use.
    fn mark(&self, number: u64, count: u64, used: &mut [bool]) -> Result<(), StoreError> {
        let end = number.saturating_add(count);
        let pages = usize::try_from(number).ok().zip(usize::try_from(end).ok());
        match pages.and_then(|(from, to)| used.get_mut(from..to)) {
            Some(pages) if pages.iter().all(|used| !used) => {
                pages.fill(true);
                Ok(())
            }
            _ => Err(self.damaged("has a page twice or one that is not there")),
        }
    }

    /// The two meta pages: LMDB writes them in turn.
    fn metas(&mut self) -> Result<[Meta; 2], StoreError> {
        let first = self.meta(0)?;
        Ok([first, self.meta(first.page_size)?])
    }

    fn meta(&mut self, offset: u64) -> Result<Meta, StoreError> {
        let mut bytes = [0; META_LEN];
        self.read(offset, &mut bytes)?;
        let page = Page(&bytes);
        if page.u16(WORD + 2) & META == 0 || page.u32(PAGE_HEADER) != MAGIC {
            let problem = "data.mdb is no LMDB file, or one of another kind of machine".into();
            return Err(StoreError::NotAStore { path: self.folder.clone(), problem });
        }
        let tree = |at: usize| Tree {
            flags: page.u16(at + 4),
            depth: page.u16(at + 6),
            root: page.word(at + 8 + 4 * WORD),
        };
        let last_page = TREES + 2 * TREE;
        let meta = Meta {
            page_size: u64::from(page.u32(TREES)),
            free: tree(TREES),
            main: tree(TREES + TREE),
            last_page: page.word(last_page),
            transaction: page.word(last_page + WORD),
        };
        let sizes = meta.page_size.is_power_of_two() && (512..=32768).contains(&meta.page_size);
        if !sizes || meta.last_page == 0 || meta.main.depth.max(meta.free.depth) > MAX_DEPTH {
            return Err(self.damaged("has a meta page that is none"));
        }
        Ok(meta)
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), StoreError> {
        let error = StoreError::io("read", &self.name);
        let result = self.file.seek(SeekFrom::Start(offset));
        match result.and_then(|_| self.file.read_exact(bytes)) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                let length =
                    self.file.metadata().map_err(StoreError::io("examine", &self.name))?.len();
                Err(self.truncated(length, offset.saturating_add(bytes.len() as u64)))
            }
            other => other.map_err(error),
        }
    }

    fn truncated(&self, found: u64, expected: u64) -> StoreError {
        StoreError::Truncated { path: self.folder.clone(), found, expected }
    }

    fn damaged(&self, problem: &str) -> StoreError {
        let problem = format!("{DATA_FILE} {problem}");
        StoreError::Damaged { path: self.folder.clone(), problem }
    }
}

/// Numbers in a page, in the byte order of the machine.
struct Page<'a>(&'a [u8]);

impl Page<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_ne_bytes(self.array(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.array(at))
    }

    fn word(&self, at: usize) -> u64 {
        usize::from_ne_bytes(self.array(at)) as u64
    }

    /// First half of an entry's header, in two halves that LMDB orders so that
    /// they are one number.
    fn node_len(&self, at: usize) -> u32 {
        self.u32(at)
    }
}
