//! Films: genres, quality, popularity and title.

use super::random::Stream;
use super::{SynthSpec, Titles};
use crate::permutation::EpochOrder;

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

/// Stars that a telling title's adjective stands for.
const TOLD: f32 = 0.8;
/// The stream of a title.
const TITLE: u64 = 3;

/// Which adjective a film's own title has.
fn adjective(seed: u64, item: u32) -> u32 {
    Stream::new(seed, TITLE, item.into()).below(ADJECTIVES.len() as u32)
}

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
    titles: Titles,
    /// Walker's alias table: a film and the share at which it, not the other, is drawn.
    alias: Vec<(f32, u32)>,
}

impl Films {
    pub(super) fn new(spec: &SynthSpec) -> Self {
        let SynthSpec { items, seed, titles, .. } = *spec;
        let film = |item: u32| {
            let mut random = Stream::new(seed, 1, item.into());
            // The smaller of two draws: some genres have many films.
            let genre = random.below(NUM_GENRES as u32).min(random.below(NUM_GENRES as u32));
            let of_title =
                match titles {
                    Titles::Plain => 0.0,
                    Titles::Telling | Titles::Shuffled => {
                        if adjective(seed, item).is_multiple_of(2) { TOLD } else { -TOLD }
                    }
                };
            Film { genre: genre as u8, quality: 0.4 * random.normal() as f32 + of_title }
        };
        let films: Vec<Film> = (0..items).map(film).collect();
        // A film's popularity falls with its place in a random order, faster than Zipf at the end.
        let order = EpochOrder::new(items.into(), seed, 7);
        let weight = |item: u32| 1.0 / (order.at(item.into()) as f64 + 20.0);
        let weights: Vec<f64> = (0..items).map(weight).collect();
        Self { seed, films, titles, alias: alias_table(&weights) }
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
        let item = match self.titles {
            Titles::Plain | Titles::Telling => item,
            Titles::Shuffled => {
                EpochOrder::new(self.len().into(), self.seed, 8).at(item.into()) as u32
            }
        };
        let mut random = Stream::new(self.seed, TITLE, item.into());
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

    const SPEC: SynthSpec =
        SynthSpec { users: 1, items: 3, ratings: 1, seed: 0, titles: Titles::Plain };

    #[test]
    fn a_telling_title_has_the_quality_of_its_film_and_a_shuffled_one_that_of_another() {
        let of = |titles| Films::new(&SynthSpec { items: 400, titles, ..SPEC });
        let [telling, shuffled] = [Titles::Telling, Titles::Shuffled].map(of);
        let good = |films: &Films, item| {
            let title = films.title(item);
            let place = ADJECTIVES.iter().position(|adjective| title.starts_with(adjective));
            place.unwrap() % 2 == 0
        };
        let agree = |films: &Films| {
            let better = |item: &u32| films.film(*item).quality > 0.0;
            (0..400).filter(|item| good(films, *item) == better(item)).count()
        };
        assert!(agree(&telling) > 380, "{}", agree(&telling));
        assert!((150..250).contains(&agree(&shuffled)), "{}", agree(&shuffled));
        for item in 0..400 {
            assert_eq!(telling.film(item).quality, shuffled.film(item).quality);
        }
    }

    #[test]
    fn films_are_drawn_by_their_weights() {
        let films = Films { alias: alias_table(&[1.0, 2.0, 5.0]), ..Films::new(&SPEC) };
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
