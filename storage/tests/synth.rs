//! Synthetic ratings: exact, reproducible, readable, and with a structure that can be learnt.

use std::collections::HashSet;
use std::path::Path;

use reclora_storage::raw::{self, ColumnMapping, DatasetFormat, RawTables};
use reclora_storage::synth::{self, MOVIES, RATINGS, SynthSpec, Titles};

const SMALL: SynthSpec =
    SynthSpec { users: 300, items: 400, ratings: 20_000, seed: 5, titles: Titles::Plain };

fn made(dir: &Path, spec: &SynthSpec) -> RawTables {
    synth::write(dir, spec, false).unwrap();
    raw::read(DatasetFormat::Movielens25m, dir, &ColumnMapping::default()).unwrap()
}

#[test]
fn counts_are_exact_and_the_reader_accepts_every_line() {
    let dir = tempfile::tempdir().unwrap();
    // The reader refuses a film rated twice, unknown films and ratings that are no half star.
    let tables = made(dir.path(), &SMALL);
    assert_eq!(tables.ratings.len(), 20_000);
    assert_eq!((tables.users.keys.len(), tables.items.keys.len()), (300, 400));
    let titles: HashSet<&String> = tables.items.texts[0].values.iter().collect();
    assert_eq!(titles.len(), 400);
    assert!(tables.items.texts[2].values.iter().all(|year| year.len() == 4));
    let levels: HashSet<u8> =
        tables.ratings.in_memory().iter().map(|rating| rating.level).collect();
    assert_eq!(levels.len(), 10, "every half star occurs");
}

#[test]
fn the_seed_decides_everything() {
    let bytes = |spec: &SynthSpec| {
        let dir = tempfile::tempdir().unwrap();
        synth::write(dir.path(), spec, false).unwrap();
        [MOVIES, RATINGS].map(|name| std::fs::read(dir.path().join(name)).unwrap())
    };
    assert_eq!(bytes(&SMALL), bytes(&SMALL));
    let other = bytes(&SynthSpec { seed: 6, ..SMALL });
    assert!(bytes(&SMALL).iter().zip(&other).all(|(a, b)| a != b));
}

#[test]
fn every_film_rated_by_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let spec = SynthSpec { users: 20, items: 30, ratings: 600, seed: 1, titles: Titles::Plain };
    assert_eq!(made(dir.path(), &spec).ratings.len(), 600);
}

#[test]
fn existing_files_are_replaced_only_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let other = SynthSpec { seed: 9, ..SMALL };
    for name in [MOVIES, RATINGS] {
        std::fs::write(dir.path().join(name), "mine").unwrap();
        let error = synth::write(dir.path(), &other, false).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("it exists"), "{error}");
        assert_eq!(std::fs::read_to_string(dir.path().join(name)).unwrap(), "mine");
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    synth::write(dir.path(), &SMALL, false).unwrap();
    let before = std::fs::read(dir.path().join(RATINGS)).unwrap();
    synth::write(dir.path(), &other, true).unwrap();
    assert_ne!(std::fs::read(dir.path().join(RATINGS)).unwrap(), before);
    let names = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names, 2, "no temporary file is left");
}

#[test]
fn numbers_that_do_not_work_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    for (users, items, ratings, words) in [
        (0, 1, 0, "at least one user"),
        (1, 0, 1, "at least one user and one item"),
        (10, 10, 9, "too few for 10 users"),
        (10, 10, 101, "too many: 10 users can rate 10 items once each, which is 100"),
    ] {
        let spec = SynthSpec { users, items, ratings, seed: 0, titles: Titles::Plain };
        let error = synth::write(dir.path(), &spec, false).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// What a user thought of a genre in the first half of the user's ratings says more of the second
/// half than chance, more than the film's mean, and late ratings are less like early ones.
#[test]
fn the_planted_structure_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let tables = made(dir.path(), &SynthSpec { ratings: 40_000, ..SMALL });
    let genre = &tables.items.fields[1].values;
    let ratings = tables.ratings.in_memory();
    let mut rows: Vec<usize> = (0..ratings.len()).collect();
    rows.sort_by_key(|r| (ratings[*r].user, ratings[*r].timestamp));
    let like = |row: usize| ratings[row].level > 5;
    let mut pairs = (0_u32, 0_u32);
    for user in rows.chunk_by(|a, b| ratings[*a].user == ratings[*b].user) {
        let (past, future) = user.split_at(user.len() / 2);
        for row in future {
            let same = |r: &&usize| {
                genre[ratings[**r].item as usize] == genre[ratings[*row].item as usize]
            };
            let seen = past.iter().filter(same).count();
            let liked = past.iter().filter(same).filter(|r| like(**r)).count();
            if seen >= 3 && liked * 2 != seen {
                pairs.0 += u32::from((liked * 2 > seen) == like(*row));
                pairs.1 += 1;
            }
        }
    }
    let accuracy = f64::from(pairs.0) / f64::from(pairs.1);
    let likes = (0..rows.len()).filter(|r| like(*r)).count() as f64 / rows.len() as f64;
    println!("accuracy {accuracy:.3} of {} predictions, likes {likes:.3}", pairs.1);
    assert!(pairs.1 > 5_000 && (0.3..0.7).contains(&likes));
    assert!(accuracy > likes.max(1.0 - likes) + 0.08, "{accuracy}");

    let mut popularity = vec![0_u32; tables.items.keys.len()];
    ratings.iter().for_each(|rating| popularity[rating.item as usize] += 1);
    popularity.sort_unstable();
    let top: u32 = popularity[320..].iter().sum();
    // Evenly shared it would be 8,000; as everybody rates a third of the films, it can't be extreme.
    assert!(top > 11_000, "the top fifth of the films has {top} of 40,000 ratings");
}
