//! Synthetic ratings with planted structure, in the layout of MovieLens-25M.
//!
//! Real ratings may not be passed on and come in one size. These have any size, and a structure that
//! a model must find: every user likes some genres and dislikes others, which drifts over the user's
//! time; films differ in quality and, much more, in popularity; users differ in activity and in how
//! kindly they rate. The rest is noise. Every number is drawn from a stream keyed by the seed and by
//! whom it concerns, so the files are a function of the [`SynthSpec`] alone, and ratings are written
//! user by user without ever being in memory together.

use std::io::{self, Write};
use std::path::Path;

use crate::atomic::{create_dir_all, write_atomic};
use crate::error::{Result, StorageError};

mod films;
mod random;
mod users;

use films::Films;
use users::User;

/// Name of the file with the ratings.
pub const RATINGS: &str = "ratings.csv";
/// Name of the file with the films.
pub const MOVIES: &str = "movies.csv";

/// How much of what is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynthSpec {
    /// Users, each with at least one rating.
    pub users: u32,
    /// Films; the least popular ones may have no rating.
    pub items: u32,
    /// Ratings, no two of one user and film.
    pub ratings: u64,
    /// Seed of every random choice.
    pub seed: u64,
    /// What titles say of the films.
    pub titles: Titles,
}

/// What the titles of films say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Titles {
    /// A word of the genre, which the table has too.
    #[default]
    Plain,
    /// Also, by their adjective, whether the film is better or worse than others: of a film with few ratings, a model
    /// that reads it knows what ids do not tell.
    Telling,
    /// The ratings of telling titles, but titles belong to other films: they say nothing, not even the genre.
    Shuffled,
}

impl SynthSpec {
    /// What is wrong with the numbers, and what would be right; `None` where they work.
    pub fn problem(&self) -> Option<String> {
        let Self { users, items, ratings, .. } = *self;
        let most = u64::from(users) * u64::from(items);
        if users == 0 || items == 0 {
            Some("there must be at least one user and one item".to_owned())
        } else if ratings < u64::from(users) {
            Some(format!(
                "{ratings} ratings are too few for {users} users, each of whom has at least one"
            ))
        } else if ratings > most {
            Some(format!(
                "{ratings} ratings are too many: {users} users can rate {items} items once each, \
                 which is {most}"
            ))
        } else {
            None
        }
    }
}

/// Writes `movies.csv` and `ratings.csv` into directory `dir` (made if need be). Files of these
/// names are replaced only if `overwrite` says so. Each appears when it is complete.
///
/// # Errors
/// Numbers that do not work (see [`SynthSpec::problem`]), files that exist, or any failure to write.
pub fn write(dir: &Path, spec: &SynthSpec, overwrite: bool) -> Result<()> {
    if let Some(problem) = spec.problem() {
        return Err(StorageError::bad_input(dir, problem));
    }
    create_dir_all(dir)?;
    for name in [MOVIES, RATINGS] {
        let path = dir.join(name);
        if !overwrite && path.exists() {
            return Err(StorageError::Exists { path });
        }
    }
    let films = Films::new(spec);
    write_atomic(&dir.join(MOVIES), |w| write_movies(w, &films))?;
    write_atomic(&dir.join(RATINGS), |w| write_ratings(w, &films, spec))
}

fn write_movies(w: &mut dyn Write, films: &Films) -> io::Result<()> {
    writeln!(w, "movieId,title,genres")?;
    for item in 0..films.len() {
        let (title, genres) = (films.title(item), films.genres(item).join("|"));
        // A title with a comma is quoted, as in the published files.
        let quote = if title.contains(',') { "\"" } else { "" };
        writeln!(w, "{},{quote}{title}{quote},{genres}", Films::id(item))?;
    }
    Ok(())
}

fn write_ratings(w: &mut dyn Write, films: &Films, spec: &SynthSpec) -> io::Result<()> {
    writeln!(w, "userId,movieId,rating,timestamp")?;
    let counts = users::counts(spec);
    let (mut rated, mut text) = (vec![u32::MAX; spec.items as usize], String::new());
    for (user, count) in (0..spec.users).zip(counts) {
        text.clear();
        User::new(user, spec.seed).rate(count, films, &mut rated, &mut text);
        w.write_all(text.as_bytes())?;
    }
    Ok(())
}
