//! Stage directories: what a stage wrote, from what, and whether it is all there (S-1).
//!
//! `plan.json` is written first and says what the directory is going to be; `manifest.json` is
//! written last and lists every file with its size and hash. A directory without a manifest is
//! unfinished: its files may serve to resume the same plan and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::atomic::{RunLock, create_dir_all, is_tmp_name, remove_file, write_bytes_atomic};
use crate::error::{Result, StorageError};
use crate::hash::{xxh3_file, xxh3_hex};

/// Version of the stage directories' layout.
pub(crate) const MANIFEST_FORMAT: u32 = 1;

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const PLAN: &str = "plan.json";
/// Largest manifest that is read: that of some million files.
const MAX_MANIFEST: u64 = 256 << 20;
/// Directories with what a stage needs only until it is complete.
pub(crate) const WORKING: [&str; 2] = ["checkpoints", "parts"];

/// One file of a stage.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Size in bytes.
    pub bytes: u64,
    /// XXH3-64 of the content, 16 hex digits.
    pub xxh3: String,
}

/// What a finished stage wrote.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct StageManifest {
    /// Name of the stage.
    pub stage: String,
    /// Version of the format of the build that wrote it.
    pub format: u32,
    /// Hash of everything the stage is a function of.
    pub fingerprint: String,
    /// Names and content hashes of what the stage read.
    pub inputs: BTreeMap<String, String>,
    /// Rows, samples, parameters: numbers for people and reports.
    pub counts: BTreeMap<String, u64>,
    /// Every file, by its path inside the directory (`/`-separated).
    pub files: BTreeMap<String, FileEntry>,
    /// Wall time in seconds.
    pub seconds: f64,
    /// XXH3-64 of the manifest's text without this member; empty before it is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub xxh3: String,
}

impl StageManifest {
    /// What the directory was going to be.
    pub(crate) fn plan(&self) -> Plan {
        Plan {
            stage: self.stage.clone(),
            format: self.format,
            fingerprint: self.fingerprint.clone(),
        }
    }

    /// The text of a manifest, with the hash of itself.
    fn sealed(mut self) -> serde_json::Result<(Self, Vec<u8>)> {
        self.xxh3.clear();
        self.xxh3 = xxh3_hex(&to_json(&self)?);
        let text = to_json(&self)?;
        Ok((self, text))
    }

    /// Reads a manifest; `None` where a byte of it was changed.
    fn unseal(text: &[u8]) -> serde_json::Result<Option<Self>> {
        let manifest: Self = serde_json::from_slice(text)?;
        let whole = manifest.clone().sealed()?.1 == text;
        Ok(whole.then_some(manifest))
    }

    /// Hash of the files' content: what a later stage depends on. Equal for equal files, whatever
    /// their order, the fingerprint and the time taken.
    pub(crate) fn content_hash(&self) -> String {
        let mut text = String::new();
        for (name, entry) in &self.files {
            // Names hold no NUL, so that no two lists have one text.
            text.push_str(&format!("{name}\0{}\0", entry.xxh3));
        }
        xxh3_hex(text.as_bytes())
    }
}

/// What a directory is going to be.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) stage: String,
    pub(crate) format: u32,
    pub(crate) fingerprint: String,
}

/// The directory of one stage of a run.
#[derive(Clone, Debug)]
pub struct StageDir {
    path: PathBuf,
    plan: Plan,
}

impl StageDir {
    /// Names a directory; nothing is read or written.
    pub fn new(path: impl Into<PathBuf>, stage: &str, fingerprint: &str) -> Self {
        let (stage, fingerprint) = (stage.to_owned(), fingerprint.to_owned());
        Self { path: path.into(), plan: Plan { stage, format: MANIFEST_FORMAT, fingerprint } }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest; `None` when there is none.
    ///
    /// # Errors
    /// It is there but unreadable, corrupt, or lists a file outside the directory.
    pub fn manifest(&self) -> Result<Option<StageManifest>> {
        let path = self.path.join(MANIFEST);
        let text = match read_at_most(&path, MAX_MANIFEST) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(e) => return Err(StorageError::io("read", &path, e)),
        };
        let manifest = StageManifest::unseal(&text)
            .map_err(|e| self.bad_file(&path, e.to_string()))?
            .ok_or_else(|| self.bad_file(&path, "is damaged (its hash differs)".into()))?;
        if let Some(name) = manifest.files.keys().find(|name| !is_inside(name)) {
            return Err(self.bad_file(&path, format!("lists {name:?}, outside the directory")));
        }
        Ok(Some(manifest))
    }

    /// Whether the stage has finished with this fingerprint and every listed file is there with the
    /// listed size. (Content is checked by [`StageDir::verify`] and by the files' own readers.)
    ///
    /// # Errors
    /// The manifest is corrupt, or the directory cannot be read.
    pub fn is_complete(&self) -> Result<bool> {
        let Some(manifest) = self.manifest()? else { return Ok(false) };
        if manifest.plan() != self.plan {
            return Ok(false);
        }
        for (name, entry) in &manifest.files {
            let path = self.path.join(name);
            match fs::metadata(&path) {
                Ok(meta) if meta.is_file() && meta.len() == entry.bytes => {}
                Ok(_) => return Ok(false),
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    return Ok(false);
                }
                Err(e) => return Err(StorageError::io("read", &path, e)),
            }
        }
        Ok(true)
    }

    /// Makes the directory ready to be written: makes it if need be, and empties it unless its
    /// `plan.json` names the same stage and fingerprint. Files of the same plan stay, so that the
    /// stage can resume; an old manifest and stale temporary files are removed.
    ///
    /// Call it from one process, before others write to the directory.
    ///
    /// # Errors
    /// The directory cannot be made or emptied, or holds files but neither plan nor manifest: then
    /// no run wrote them, and they are not removed.
    pub fn prepare(&self) -> Result<()> {
        create_dir_all(&self.path)?;
        let plan_path = self.path.join(PLAN);
        let old = match fs::read(&plan_path) {
            Ok(text) => Some(serde_json::from_slice::<Plan>(&text).ok()),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(StorageError::io("read", &plan_path, e)),
        };
        match old {
            Some(Some(old)) if old == self.plan => {
                remove_file(&self.path.join(MANIFEST))?;
                return remove_stale(&self.path);
            }
            Some(_) => {}
            None => self.refuse_foreign_files()?,
        }
        // The plan goes last: killed in between, the directory is still recognised as a run's.
        for entry in entries(&self.path)?.into_iter().filter(|e| e.name != PLAN) {
            let path = self.path.join(&entry.name);
            let removed =
                if entry.is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|e| StorageError::io("remove", &path, e))?;
        }
        let plan = to_json(&self.plan).map_err(|e| StorageError::bad_input(&plan_path, e))?;
        write_bytes_atomic(&plan_path, &plan)
    }

    /// Makes the directory ready for one of several processes that write to it at the same time, each its own
    /// files: as [`StageDir::prepare`] does for the first of them; what the others write stays.
    ///
    /// # Errors
    /// As for [`StageDir::prepare`], or another process holds `lock` (a directory) for longer than `wait`.
    pub fn join(&self, lock: &Path, wait: Duration) -> Result<()> {
        create_dir_all(lock)?;
        let _one_at_a_time = RunLock::acquire(lock, wait)?;
        let plan = fs::read(self.path.join(PLAN)).ok();
        let plan = plan.and_then(|text| serde_json::from_slice(&text).ok());
        if plan.as_ref() == Some(&self.plan) && !self.path.join(MANIFEST).exists() {
            return Ok(());
        }
        self.prepare()
    }

    /// What the directory is to hold.
    /// Checks that [`StageDir::prepare`] may have the directory: it is not there, is empty, or a run's.
    ///
    /// # Errors
    /// It holds files that no run wrote, or can't be read.
    pub fn check_free(&self) -> Result<()> {
        if self.path.join(PLAN).exists() || !self.path.exists() {
            return Ok(());
        }
        self.refuse_foreign_files()
    }

    fn refuse_foreign_files(&self) -> Result<()> {
        let entries = entries(&self.path)?;
        if entries.iter().any(|e| e.name == MANIFEST) {
            return Ok(());
        }
        match entries.into_iter().find(|e| e.is_dir || !is_tmp_name(&e.name)) {
            None => Ok(()),
            Some(entry) => {
                Err(StorageError::ForeignDirectory { path: self.path.clone(), example: entry.name })
            }
        }
    }

    /// Finishes the stage: hashes every file of the directory (not the plan, temporary files, and
    /// what is under `checkpoints/` and `parts/`) and writes the manifest.
    ///
    /// # Errors
    /// A file cannot be read, has a name that is not UTF-8, or the manifest cannot be written.
    pub fn complete(
        &self,
        counts: BTreeMap<String, u64>,
        inputs: BTreeMap<String, String>,
        seconds: f64,
    ) -> Result<StageManifest> {
        let mut files = BTreeMap::new();
        for name in file_names(&self.path)? {
            let path = self.path.join(&name);
            let meta = fs::metadata(&path).map_err(|e| StorageError::io("read", &path, e))?;
            let entry = FileEntry { bytes: meta.len(), xxh3: xxh3_file(&path)? };
            files.insert(name, entry);
        }
        let manifest = StageManifest {
            stage: self.plan.stage.clone(),
            format: self.plan.format,
            fingerprint: self.plan.fingerprint.clone(),
            inputs,
            counts,
            files,
            seconds,
            xxh3: String::new(),
        };
        let path = self.path.join(MANIFEST);
        let (manifest, text) = manifest.sealed().map_err(|e| StorageError::bad_input(&path, e))?;
        write_bytes_atomic(&path, &text)?;
        Ok(manifest)
    }

    /// Hash of the finished stage's content: what a later stage depends on. Equal for equal files,
    /// whatever their order, the fingerprint and the time taken.
    ///
    /// # Errors
    /// No manifest, or a corrupt one.
    pub fn content_hash(&self) -> Result<String> {
        Ok(self.finished()?.content_hash())
    }

    /// Hashes every listed file again.
    ///
    /// # Errors
    /// No manifest, or a file that is missing or not the listed one: named, with the command that
    /// rebuilds it.
    pub fn verify(&self) -> Result<()> {
        for (name, entry) in &self.finished()?.files {
            let path = self.path.join(name);
            let size = fs::metadata(&path).map_err(|e| self.bad_file(&path, e.to_string()))?.len();
            if size != entry.bytes {
                let problem = format!("{size} bytes, not the {} of the manifest", entry.bytes);
                return Err(self.bad_file(&path, problem));
            }
            if xxh3_file(&path)? != entry.xxh3 {
                return Err(self.bad_file(&path, "its hash is not that of the manifest".into()));
            }
        }
        Ok(())
    }

    fn finished(&self) -> Result<StageManifest> {
        self.manifest()?.ok_or_else(|| StorageError::Incomplete {
            path: self.path.clone(),
            stage: self.plan.stage.clone(),
        })
    }

    fn bad_file(&self, path: &Path, problem: String) -> StorageError {
        StorageError::StageFile {
            path: path.to_path_buf(),
            stage: self.plan.stage.clone(),
            problem,
        }
    }
}

/// Every file of a stage's directory that its manifest is to list, by name: not plan, manifest,
/// temporary files and working directories.
pub(crate) fn file_names(dir: &Path) -> Result<Vec<String>> {
    fn collect(dir: &Path, prefix: &str, names: &mut Vec<String>) -> Result<()> {
        for entry in entries(&dir.join(prefix))? {
            let name = format!("{prefix}{}", entry.name);
            if entry.is_dir {
                if !(prefix.is_empty() && WORKING.contains(&entry.name.as_str())) {
                    collect(dir, &format!("{name}/"), names)?;
                }
            } else if !is_tmp_name(&entry.name) && name != MANIFEST && name != PLAN {
                names.push(name);
            }
        }
        Ok(())
    }
    let mut names = Vec::new();
    collect(dir, "", &mut names)?;
    Ok(names)
}

/// An entry of a directory.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) is_dir: bool,
}

/// The directory's entries by name. Links count as files: what they point to is never removed.
pub(crate) fn entries(dir: &Path) -> Result<Vec<Entry>> {
    let failed = |e| StorageError::io("read directory", dir, e);
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_dir = entry.file_type().map_err(failed)?.is_dir();
        let name = entry.file_name().into_string().map_err(|name| {
            StorageError::bad_input(dir, format!("{name:?} is not a UTF-8 file name"))
        })?;
        entries.push(Entry { name, is_dir });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn remove_stale(dir: &Path) -> Result<()> {
    for entry in entries(dir)? {
        let path = dir.join(&entry.name);
        if entry.is_dir {
            remove_stale(&path)?;
        } else if is_tmp_name(&entry.name) {
            remove_file(&path)?;
        }
    }
    Ok(())
}

fn to_json(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}

/// The content of a file that may not be longer than `limit`.
fn read_at_most(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// Whether a listed name stays inside the directory.
fn is_inside(name: &str) -> bool {
    let path = Path::new(name);
    !name.is_empty() && path.components().all(|c| matches!(c, Component::Normal(_)))
}
