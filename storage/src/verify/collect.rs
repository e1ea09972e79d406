//! What there is to check at a path. Reads manifests and sizes, no content.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::memory::STATE;
use super::{Finding, Task, Work};
use crate::atomic::is_tmp_name;
use crate::error::{Result, StorageError};
use crate::manifest::{
    MANIFEST, MANIFEST_FORMAT, PLAN, Plan, StageDir, StageManifest, WORKING, entries, file_names,
};

pub(super) fn collect(path: &Path) -> Result<Work> {
    let mut work = Work::default();
    let meta = fs::metadata(path).map_err(|e| StorageError::io("read", path, e))?;
    if !meta.is_dir() {
        work.file(path)?;
        return Ok(work);
    }
    work.directory(path)?;
    // A stage's directory holds nothing but the stage's files: the run remembers for it.
    let memory = match (is_stage(path), path.parent()) {
        (true, Some(parent)) if !parent.as_os_str().is_empty() => parent,
        (true, _) => Path::new("."),
        (false, _) => path,
    };
    work.memory = Some(memory.join(STATE));
    Ok(work)
}

fn is_stage(dir: &Path) -> bool {
    dir.join(MANIFEST).exists() || dir.join(PLAN).exists()
}

/// The stage that a directory says it is of.
fn stage_of(dir: &Path) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Named {
        stage: String,
    }
    [PLAN, MANIFEST].iter().find_map(|name| {
        let text = fs::read(dir.join(name)).ok()?;
        serde_json::from_slice::<Named>(&text).ok().map(|named| named.stage)
    })
}

impl Work {
    fn damaged(&mut self, path: PathBuf, problem: impl Into<String>, stage: &Option<String>) {
        let (problem, stage) = (problem.into(), stage.clone());
        self.damaged.push(Finding { path, problem, stage, foreign: false });
    }

    /// A file by itself: as a manifest lists it, or by its own hashes.
    fn file(&mut self, path: &Path) -> Result<()> {
        let path = std::path::absolute(path).map_err(|e| StorageError::io("read", path, e))?;
        if let (Some(dir), Some(MANIFEST | PLAN)) =
            (path.parent(), path.file_name().and_then(|name| name.to_str()))
        {
            let stage = stage_of(dir);
            self.manifest(dir, &stage);
            return Ok(());
        }
        for dir in path.ancestors().skip(1).filter(|dir| dir.join(MANIFEST).is_file()) {
            let stage = stage_of(dir);
            let Some(manifest) = self.manifest(dir, &stage) else { continue };
            let name = path.strip_prefix(dir).ok().and_then(Path::to_str);
            if let Some(entry) = name.and_then(|name| manifest.files.get(name)) {
                self.listed(&path, entry.bytes, &entry.xxh3, &stage);
                return Ok(());
            }
        }
        self.by_itself(path, &None);
        Ok(())
    }

    /// A directory that may hold those of stages.
    fn directory(&mut self, dir: &Path) -> Result<()> {
        if is_stage(dir) {
            return self.stage(dir);
        }
        for entry in entries(dir)? {
            let path = dir.join(&entry.name);
            if entry.is_dir {
                self.directory(&path)?;
            } else if path.extension().is_some_and(|extension| extension == "shard") {
                self.by_itself(path, &None);
            }
        }
        Ok(())
    }

    fn stage(&mut self, dir: &Path) -> Result<()> {
        let stage = stage_of(dir);
        let before = self.damaged.len();
        let manifest = self.manifest(dir, &stage);
        let names = file_names(dir)?;
        match &manifest {
            Some(manifest) => {
                for (name, entry) in &manifest.files {
                    self.listed(&dir.join(name), entry.bytes, &entry.xxh3, &stage);
                }
                let listed: BTreeSet<&String> = manifest.files.keys().collect();
                for name in names.iter().filter(|name| !listed.contains(name)) {
                    let problem =
                        "is a foreign file: the manifest.json of its stage does not list it".into();
                    let (path, stage) = (dir.join(name), stage.clone());
                    self.damaged.push(Finding { path, problem, stage, foreign: true });
                }
            }
            None => {
                if self.damaged.len() == before {
                    self.unfinished.push(dir.to_path_buf());
                }
                for name in names.iter().filter(|name| name.ends_with(".shard")) {
                    self.by_itself(dir.join(name), &stage);
                }
            }
        }
        for working in WORKING {
            self.working(&dir.join(working), &stage)?;
        }
        Ok(())
    }

    /// What a stage keeps until it is done carries its own hashes.
    fn working(&mut self, dir: &Path, stage: &Option<String>) -> Result<()> {
        if !dir.is_dir() {
            return Ok(());
        }
        for entry in entries(dir)? {
            let path = dir.join(&entry.name);
            if entry.is_dir {
                self.working(&path, stage)?;
            } else if !is_tmp_name(&entry.name) {
                self.by_itself(path, stage);
            }
        }
        Ok(())
    }

    /// Reads the manifest of a directory, and compares it with the plan.
    fn manifest(&mut self, dir: &Path, stage: &Option<String>) -> Option<StageManifest> {
        let path = dir.join(MANIFEST);
        let manifest = match StageDir::new(dir, stage.as_deref().unwrap_or("STAGE"), "").manifest()
        {
            Ok(manifest) => manifest?,
            Err(StorageError::StageFile { problem, .. }) => {
                self.damaged(path, format!("is no manifest: {problem}"), stage);
                return None;
            }
            Err(error) => {
                self.damaged(path, error.to_string(), stage);
                return None;
            }
        };
        if manifest.format != MANIFEST_FORMAT {
            let problem =
                format!("has format {}; this build reads {MANIFEST_FORMAT}", manifest.format);
            self.damaged(path, problem, stage);
            return None;
        }
        let plan = dir.join(PLAN);
        let planned = fs::read(&plan).ok().map(|text| serde_json::from_slice::<Plan>(&text));
        match planned {
            Some(Ok(found)) if found != manifest.plan() => {
                self.damaged(plan, "is not the plan of the manifest.json beside it", stage);
            }
            Some(Err(error)) => self.damaged(plan, format!("is no plan: {error}"), stage),
            Some(Ok(_)) | None => {}
        }
        self.manifests += 1;
        self.hashes.insert(manifest.stage.clone(), manifest.content_hash());
        self.inputs.push((manifest.stage.clone(), manifest.inputs.clone()));
        Some(manifest)
    }

    /// A file that a manifest lists.
    fn listed(&mut self, path: &Path, bytes: u64, xxh3: &str, stage: &Option<String>) {
        match fs::metadata(path) {
            Ok(meta) if !meta.is_file() => {
                self.damaged(path.into(), "is a directory where manifest.json lists a file", stage);
            }
            Ok(meta) if meta.len() != bytes => {
                let problem = format!("has {} bytes, not the {bytes} of manifest.json", meta.len());
                self.damaged(path.into(), problem, stage);
            }
            Ok(_) => self.tasks.push(Task {
                path: path.into(),
                bytes,
                xxh3: Some(xxh3.to_owned()),
                stage: stage.clone(),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.damaged(path.into(), "is missing", stage);
            }
            Err(error) => self.damaged(path.into(), format!("cannot be read: {error}"), stage),
        }
    }

    /// A file that only its own hashes speak for.
    fn by_itself(&mut self, path: PathBuf, stage: &Option<String>) {
        match fs::metadata(&path) {
            Ok(meta) if meta.is_file() => {
                let (bytes, stage) = (meta.len(), stage.clone());
                self.tasks.push(Task { path, bytes, xxh3: None, stage });
            }
            Ok(_) => self.damaged(path, "is no ordinary file", stage),
            Err(error) => self.damaged(path, format!("cannot be read: {error}"), stage),
        }
    }
}
