//! Films: genres, quality, popularity and title.

use super::random::Stream;

/// The genres of MovieLens, each with two words that its titles are made of.
const GENRES: [(&str, [&str; 2]); 18] = [
    ("Action", ["Strike", "Pursuit"]),
    ("Adventure", ["Voyage", "Island"]),
    ("Animation", ["Puppet", "Dragon"]),
    ("Children", ["Puppy", "Playground"]),
    ("Comedy", ["Wedding", "Neighbour"]),
    ("Crime", ["Heist", "Alibi"]),
    ("Documentary", ["Portrait", "Archive"]),
    ("Drama", ["Inheritance", "Winter"]),
    ("Fantasy", ["Wizard", "Kingdom"]),
    ("Film-Noir", ["Alley", "Stranger"]),
    ("Horror", ["Crypt", "Scream"]),
    ("Musical", ["Melody", "Chorus"]),
    ("Mystery", ["Riddle", "Disappearance"]),
    ("Romance", ["Kiss", "Letter"]),
    ("Sci-Fi", ["Planet", "Android"]),
    ("Thriller", ["Witness", "Deadline"]),
    ("War", ["Regiment", "Trench"]),
    ("Western", ["Saloon", "Prairie"]),
];
/// Number of genres.
pub(super) const NUM_GENRES: usize = GENRES.len();

const ADJECTIVES: [&str; 12] = [
    "Silent",
    "Golden",
    "Broken",
    "Distant",
    "Hidden",
    "Burning",
    "Gentle",
    "Crooked",
    "Last",
    "Forgotten",
    "Midnight",
    "Endless",
];

/// What a rating depends on, of one film.
#[derive(Clone, Copy, Debug)]
pub(super) struct Film {
    /// Index of the first genre, the one that users like or dislike.
    pub(super) genre: u8,
    /// Stars above or below the average.
    pub(super) quality: f32,
}

/// All films.
pub(super) struct Films {
    seed: u64,
    films: Vec<Film>,
    /// Walker's alias table: a film and the share at which it, not the other, is drawn.
    alias: Vec<(f32, u32)>,
}

impl Films {
    pub(super) fn new(items: u32, seed: u64) -> Self {
        let film = |item: u32| {
            let mut random = Stream::new(seed, 1, item.into());
            // The smaller of two draws: some genres have many films.
            let genre = random.below(NUM_GENRES as u32).min(random.below(NUM_GENRES as u32));
            Film { genre: genre as u8, quality: 0.4 * random.normal() as f32 }
        };
        let films: Vec<Film> = (0..items).map(film).collect();
        // A film's popularity falls with its place in a random order, faster than Zipf at the end.
        let order = crate::permutation::EpochOrder::new(items.into(), seed, 7);
        let weight = |item: u32| 1.0 / (order.at(item.into()) as f64 + 20.0);
        let weights: Vec<f64> = (0..items).map(weight).collect();
        Self { seed, films, alias: alias_table(&weights) }
    }

    pub(super) fn len(&self) -> u32 {
        self.films.len() as u32
    }

    /// The film's id in the files: ascending, with gaps as in the published ones.
    pub(super) fn id(item: u32) -> u64 {
        3 * u64::from(item) + u64::from(item % 3) + 1
    }

    pub(super) fn film(&self, item: u32) -> Film {
        self.films.get(item as usize).copied().unwrap_or(Film { genre: 0, quality: 0.0 })
    }

    /// Draws a film by popularity.
    pub(super) fn draw(&self, random: &mut Stream) -> u32 {
        let item = random.below(self.len());
        match self.alias.get(item as usize) {
            Some((share, other)) if random.uniform() >= f64::from(*share) => *other,
            _ => item,
        }
    }

    /// One to three genres, the one that counts first.
    pub(super) fn genres(&self, item: u32) -> Vec<&'static str> {
        let mut random = Stream::new(self.seed, 2, item.into());
        let mut names = vec![name(self.film(item).genre.into())];
        for _ in 0..random.below(3) {
            let more = name(random.below(NUM_GENRES as u32) as usize);
            if !names.contains(&more) {
                names.push(more);
            }
        }
        names
    }

    /// A title with a word of the first genre, the film's number and a year.
    pub(super) fn title(&self, item: u32) -> String {
        let mut random = Stream::new(self.seed, 3, item.into());
        let adjective = ADJECTIVES.get(random.below(12) as usize).copied().unwrap_or_default();
        let words = GENRES.get(usize::from(self.film(item).genre)).map(|(_, words)| words);
        let word = words.and_then(|w| w.get(random.below(2) as usize)).copied();
        let (word, number, year) = (word.unwrap_or_default(), item + 1, 1930 + random.below(85));
        match random.below(4) {
            0 => format!("{adjective} {word} {number}, The ({year})"),
            _ => format!("{adjective} {word} {number} ({year})"),
        }
    }
}

fn name(genre: usize) -> &'static str {
    GENRES.get(genre).map_or("", |(name, _)| name)
}

/// Walker's table of these weights (all positive): one draw costs one look-up, whatever their number.
fn alias_table(weights: &[f64]) -> Vec<(f32, u32)> {
    let mean = weights.iter().sum::<f64>() / weights.len() as f64;
    let mut rest: Vec<f64> = weights.iter().map(|w| w / mean).collect();
    let mut table: Vec<(f32, u32)> = (0..weights.len() as u32).map(|i| (1.0, i)).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..rest.len()).partition(|i| rest.get(*i).is_some_and(|r| *r < 1.0));
    while let (Some(low), Some(high)) = (small.pop(), large.pop()) {
        let share = rest.get(low).copied().unwrap_or(1.0);
        if let Some(entry) = table.get_mut(low) {
            *entry = (share as f32, high as u32);
        }
        let Some(left) = rest.get_mut(high) else { continue };
        *left -= 1.0 - share;
        if *left < 1.0 { small.push(high) } else { large.push(high) }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn films_are_drawn_by_their_weights() {
        let films =
            Films { seed: 0, films: Films::new(3, 0).films, alias: alias_table(&[1.0, 2.0, 5.0]) };
        let mut random = Stream::new(1, 2, 3);
        let mut hits = [0_u32; 3];
        for _ in 0..80_000 {
            hits[films.draw(&mut random) as usize] += 1;
        }
        for (hits, expected) in hits.iter().zip([10_000, 20_000, 50_000]) {
            assert!(hits.abs_diff(expected) < 1_000, "{hits} of {expected}");
        }
    }

    #[test]
    fn ids_ascend() {
        assert!((0..1000).all(|item| Films::id(item) < Films::id(item + 1)));
    }
}
