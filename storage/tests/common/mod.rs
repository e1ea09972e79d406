//! Small raw directories in each layout, and file systems that are soon full.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use reclora_storage::protocol::{LabelRule, ProtocolConfig};
use reclora_storage::raw::{self, ColumnMapping, DatasetFormat, Rating, RawTables};

/// A directory of raw files that a test fills.
pub struct Raw(tempfile::TempDir);

impl Raw {
    pub fn new(files: &[(&str, &str)]) -> Self {
        let raw = Self(tempfile::tempdir().unwrap());
        files.iter().for_each(|(name, text)| raw.put(name, text.as_bytes()));
        raw
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).unwrap();
    }

    pub fn put_gz(&self, name: &str, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        let compressed = encoder.finish().unwrap();
        self.put(name, &compressed);
        compressed
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path().join(name)).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn read(&self, format: DatasetFormat) -> reclora_storage::Result<RawTables> {
        raw::read(format, self.path(), &ColumnMapping::default())
    }

    pub fn files(&self, format: DatasetFormat) -> reclora_storage::Result<Vec<PathBuf>> {
        raw::files(format, self.path(), &ColumnMapping::default())
    }

    /// The error of reading, which must say all of `words`.
    #[track_caller]
    pub fn refused(&self, format: DatasetFormat, words: &[&str]) {
        let error = self.read(format).map(|_| ()).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    }
}

pub fn movietweetings() -> Raw {
    Raw::new(&[
        (
            "movies.dat",
            "0000010::La sortie (1895)::Documentary|Short\n\
             0000002::Amélie \"Le Fabuleux\", destin (2001)::Comedy\n\
             0000003::Untitled::\n",
        ),
        (
            "ratings.dat",
            "7::0000002::8::100\n7::0000010::10::50\n9::0000002::0::100\n10::0000003::3::100\n",
        ),
    ])
}

pub fn movielens_1m() -> Raw {
    let raw = Raw::new(&[
        ("users.dat", "1::F::1::10::48067\n2::M::56::16::70072-123\n3::M::25::15::55117\n"),
        ("ratings.dat", "1::1::5::978300760\n2::2::3::978302109\n1::2::1::978301968\n"),
    ]);
    // Latin-1: 0xe9 is é.
    let movies = b"1::Toy Story (1995)::Animation|Children's|Comedy\n\
                   2::Mis\xe9rables, Les (1995)::Drama|Musical\n3::Unseen (1990)::War\n";
    raw.put("movies.dat", movies);
    raw
}

pub fn movielens_100k() -> Raw {
    let raw = Raw::new(&[
        ("u.user", "1|24|M|technician|85711\n2|53|F|other|94043\n"),
        ("u.data", "1\t2\t3\t881250949\n2\t1\t5\t891717742\n"),
    ]);
    let flags = |set: &[usize]| {
        (0..19).map(|i| if set.contains(&i) { "|1" } else { "|0" }).collect::<String>()
    };
    let mut items = format!("1|Toy Story (1995)|01-Jan-1995||http://x{}\n", flags(&[3, 4, 5]));
    items += &format!("2|unknown||||{}\n", &flags(&[0])[1..]);
    let mut bytes = items.into_bytes();
    bytes.extend(b"3|Caf\xe9, \"Le\" (1990)|||http://x");
    bytes.extend(flags(&[]).into_bytes());
    raw.put("u.item", &bytes);
    raw
}

pub fn movielens_25m() -> Raw {
    Raw::new(&[
        (
            "movies.csv",
            "movieId,title,genres\n1,Toy Story (1995),Adventure|Animation\n\
             11,\"American President, The (1995)\",Comedy|Drama\n\
             20,\"\"\"Great\"\" Amélie, (2001)\",(no genres listed)\n",
        ),
        (
            "ratings.csv",
            "userId,movieId,rating,timestamp\n1,11,0.5,1147880044\n1,20,5.0,1147868817\n2,1,3.5,1\n",
        ),
    ])
}

/// Times with half stars, and no table of users.
pub fn movielens_10m() -> Raw {
    Raw::new(&[
        (
            "movies.dat",
            "1::Toy Story (1995)::Adventure|Animation\n5952::Lord of the Rings: The Two Towers, The (2002)::Adventure\n\
             7::Amélie (2001)::Comedy\n",
        ),
        ("ratings.dat", "1::1::5::838985046\n1::5952::3.5::838983525\n2::7::0.5::838983392\n"),
        ("tags.dat", "15::4973::excellent!::1215184630\n"),
    ])
}

/// The first and the last second that a time may have.
pub const FIRST_TIME: i64 = -2_208_988_800;
pub const LAST_TIME: i64 = 9_214_646_399;

/// A property of all ratings, in the order of the file.
pub fn ratings<T>(raw: &RawTables, of: impl Fn(&Rating) -> T) -> Vec<T> {
    raw.ratings.in_memory().iter().map(of).collect()
}

/// The times of ratings in whole seconds.
pub fn seconds(raw: &RawTables) -> Vec<i64> {
    ratings(raw, |rating| rating.timestamp.div_euclid(1_000_000_000))
}

pub fn every_format() -> [(DatasetFormat, Raw); 4] {
    [
        (DatasetFormat::Movietweetings, movietweetings()),
        (DatasetFormat::Movielens100k, movielens_100k()),
        (DatasetFormat::Movielens1m, movielens_1m()),
        (DatasetFormat::Movielens25m, movielens_25m()),
    ]
}

pub fn config(k_core: u32, min_history: u32) -> ProtocolConfig {
    ProtocolConfig { k_core, min_history, label: LabelRule::AtLeast(4.0), split: [0.8, 0.1, 0.1] }
}

/// The MovieTweetings files of the repository.
pub fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/data/movietweetings-100k")
}

/// Whether this process may mount file systems (CAP_SYS_ADMIN).
pub fn may_mount() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap_or("0");
    u64::from_str_radix(line.trim(), 16).unwrap_or(0) & (1 << 21) != 0
}

/// A mounted tmpfs, unmounted on drop.
pub struct Mount(tempfile::TempDir);

impl Mount {
    pub fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(dir.path());
        assert!(mount.status().unwrap().success(), "tmpfs mounts");
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}
