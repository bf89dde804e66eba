//! The folder of an export: what is exported, and which parts of it are complete.
//!
//! `export.json` says what was asked for and what that came to, so that each run exports the same. A complete part is
//! named after its stream and shard, the offset it begins with and the one after it: so where the next begins
//! needs no look into any file. What is not complete ends in `.unfinished`, and is removed by the next run.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::FileFormat;
use super::part::Part;

const PLAN: &str = "export.json";
const UNFINISHED: &str = "unfinished";

/// What a person asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Asked {
    pub(super) stream: String,
    pub(super) format: FileFormat,
    pub(super) from: String,
    pub(super) until: String,
    pub(super) shard: Option<u32>,
    pub(super) filter: Option<String>,
}

/// Where the export of a shard begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Begin {
    Offset(u64),
    TimeMicros(u64),
}

/// What is exported of one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ShardPlan {
    pub(super) shard: u32,
    pub(super) begin: Begin,
    /// The first offset that is not.
    pub(super) end: u64,
}

/// What is exported, as the first run settled it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Plan {
    pub(super) asked: Asked,
    /// Tells the stream from another that is made later by its name.
    pub(super) stream_id: u32,
    /// Messages from this time on are not.
    pub(super) until_micros: Option<u64>,
    pub(super) shards: Vec<ShardPlan>,
}

impl Plan {
    /// Refuses what is not the export that `dir` has.
    pub(super) fn check(&self, asked: &Asked, dir: &Path) -> anyhow::Result<()> {
        let (ours, theirs) = (&self.asked, asked);
        let differs = [
            ("stream", ours.stream != theirs.stream),
            ("--format", ours.format != theirs.format),
            ("--from", ours.from != theirs.from),
            ("--until", ours.until != theirs.until),
            ("--shard", ours.shard != theirs.shard),
            ("--filter", ours.filter != theirs.filter),
        ];
        match differs.iter().find(|(_, differs)| *differs) {
            None => Ok(()),
            Some((what, _)) => bail!(
                "{} has another export, with another {what}; use another --out, or the command that began it",
                dir.display()
            ),
        }
    }
}

/// The folder.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// Opens or makes it, and removes what is not complete.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("make the folder {}", dir.display()))?;
        let folder = Self { dir: dir.to_owned() };
        let names = folder.names()?;
        if !names.is_empty()
            && !names.iter().any(|name| name == PLAN)
            && !names.iter().all(|name| is_unfinished(name))
        {
            bail!("{} is not empty and has no {PLAN}; use another --out", dir.display());
        }
        for name in names.iter().filter(|name| is_unfinished(name)) {
            let path = dir.join(name);
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(folder)
    }

    fn names(&self) -> anyhow::Result<Vec<String>> {
        let read = || -> std::io::Result<Vec<String>> {
            fs::read_dir(&self.dir)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        read().with_context(|| format!("read the folder {}", self.dir.display()))
    }

    /// What is exported here, if an export has begun.
    pub(super) fn plan(&self) -> anyhow::Result<Option<Plan>> {
        let path = self.dir.join(PLAN);
        match fs::read(&path) {
            Ok(text) => {
                let plan = serde_json::from_slice(&text);
                Ok(Some(plan.with_context(|| format!("{} is damaged; use another --out", path.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Keeps what is exported.
    pub(super) fn keep(&self, plan: &Plan) -> anyhow::Result<()> {
        let path = self.unfinished(PLAN);
        let write = || -> anyhow::Result<()> {
            let mut file = File::create(&path)?;
            serde_json::to_writer_pretty(&mut file, plan)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            Ok(())
        };
        write().with_context(|| format!("write {}", path.display()))?;
        self.rename(&path, PLAN)
    }

    /// The end of the last complete part of `shard`.
    pub(super) fn reached(&self, asked: &Asked, shard: u32) -> anyhow::Result<Option<u64>> {
        let names = self.names()?;
        Ok(names.iter().filter_map(|name| end_of_part(name, asked, shard)).max())
    }

    /// A new part of `shard`, which begins at `base`.
    pub(super) fn part(&self, format: FileFormat, shard: u32, base: u64) -> anyhow::Result<Part> {
        let path = self.unfinished(&format!("{shard}-{base}"));
        Part::create(path.clone(), format, shard, base).with_context(|| format!("write {}", path.display()))
    }

    /// Gives a part that ends at `end` its name; its size.
    pub(super) fn complete(&self, asked: &Asked, part: Part, end: u64) -> anyhow::Result<u64> {
        let name = name_of_part(asked, part.shard(), part.base(), end);
        let path = part.path().to_owned();
        let size = part.finish().with_context(|| format!("write {}", path.display()))?;
        self.rename(&path, &name)?;
        Ok(size)
    }

    fn unfinished(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.{UNFINISHED}"))
    }

    /// What is at `path` has its name, also after a power failure.
    fn rename(&self, path: &Path, name: &str) -> anyhow::Result<()> {
        let rename = || {
            fs::rename(path, self.dir.join(name))?;
            File::open(&self.dir)?.sync_all()
        };
        rename().with_context(|| format!("name {} in {}", name, self.dir.display()))
    }
}

fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(UNFINISHED).is_some_and(|rest| rest.ends_with('.'))
}

const fn extension(format: FileFormat) -> &'static str {
    match format {
        FileFormat::Parquet => "parquet",
        FileFormat::Jsonl => "jsonl",
    }
}

fn name_of_part(asked: &Asked, shard: u32, base: u64, end: u64) -> String {
    format!("{}-{shard:02}-{base:020}-{end:020}.{}", asked.stream, extension(asked.format))
}

/// Where the part called `name` ends, if it is one of `shard`.
fn end_of_part(name: &str, asked: &Asked, shard: u32) -> Option<u64> {
    let name = name.strip_prefix(&asked.stream)?.strip_prefix(&format!("-{shard:02}-"))?;
    let name = name.strip_suffix(extension(asked.format))?.strip_suffix('.')?;
    let (base, end) = name.split_once('-')?;
    base.parse::<u64>().ok()?;
    end.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Asked {
        Asked {
            stream: "a-1".into(),
            format: FileFormat::Jsonl,
            from: "earliest".into(),
            until: "latest".into(),
            shard: None,
            filter: None,
        }
    }

    fn plan() -> Plan {
        let shards = vec![ShardPlan { shard: 3, begin: Begin::TimeMicros(7), end: 9 }];
        Plan { asked: asked(), stream_id: 4, until_micros: None, shards }
    }

    #[test]
    fn parts_are_told_apart() {
        let name = name_of_part(&asked(), 3, 5, 9);
        assert_eq!(name, "a-1-03-00000000000000000005-00000000000000000009.jsonl");
        assert_eq!(end_of_part(&name, &asked(), 3), Some(9));
        assert_eq!(end_of_part(&name, &asked(), 4), None);
        assert_eq!(end_of_part(&name, &Asked { format: FileFormat::Parquet, ..asked() }, 3), None);
        for other in
            ["a-1-03-5.jsonl", "a-1-03-x-9.jsonl", "a-1-03-5-9-9.jsonl", "b-03-5-9.jsonl", "export.json"]
        {
            assert_eq!(end_of_part(other, &asked(), 3), None, "{other}");
        }
    }

    #[test]
    fn a_folder_goes_on_with_its_own_export_only() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.plan().unwrap(), None);
        folder.keep(&plan()).unwrap();
        fs::write(dir.path().join("3-0.unfinished"), "half").unwrap();
        fs::write(dir.path().join(name_of_part(&asked(), 3, 0, 4)), "").unwrap();
        fs::write(dir.path().join(name_of_part(&asked(), 3, 4, 6)), "").unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let kept = folder.plan().unwrap().unwrap();
        assert_eq!(kept, plan());
        assert!(!dir.path().join("3-0.unfinished").exists());
        assert_eq!(folder.reached(&asked(), 3).unwrap(), Some(6));
        assert_eq!(folder.reached(&asked(), 0).unwrap(), None);
        kept.check(&asked(), dir.path()).unwrap();
        let other = Asked { until: "9".into(), ..asked() };
        let refused = kept.check(&other, dir.path()).unwrap_err().to_string();
        assert!(refused.contains("has another export, with another --until; use another --out"), "{refused}");
        fs::write(dir.path().join(PLAN), "{").unwrap();
        assert!(folder.plan().unwrap_err().to_string().contains("is damaged"));
    }

    #[test]
    fn a_folder_of_other_things_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("letter.txt"), "dear").unwrap();
        let refused = Folder::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("is not empty and has no export.json"), "{refused}");
    }
}
