//! Readers of raw rating files.
use serde::{Deserialize, Serialize};
/// Layout of raw files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DatasetFormat {
    /// MovieTweetings: `ratings.dat`, `movies.dat`, `::`-separated, UTF-8.
    #[serde(rename = "movietweetings")]
    Movietweetings,
    /// MovieLens-100K: `u.data`, `u.item`, `u.user`.
    #[serde(rename = "movielens_100k")]
    Movielens100k,
    /// MovieLens-1M: `ratings.dat`, `movies.dat`, `users.dat`, latin-1.
    #[serde(rename = "movielens_1m")]
    Movielens1m,
    /// MovieLens-25M: `ratings.csv`, `movies.csv`.
    #[serde(rename = "movielens_25m")]
    Movielens25m,
}
