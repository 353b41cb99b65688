//! Texts for people: characters that mislead the reader of a name, near misses of a name, and numbers
//! with their noun.

/// A number and what it counts: `1 credential`, `2 credentials`.
#[must_use]
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Whether a character is invisible or reorders the text around it, so that two names look the
/// same: `Default_Ignorable_Code_Point` of Unicode without variation selectors, and the
/// separators of lines, paragraphs and annotations.
#[must_use]
pub fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e00ff}' | '\u{e01f0}'..='\u{e0fff}')
}

/// The candidate that `name` was most likely meant to be: the one with the fewest characters to
/// insert, delete, replace, or swap with the next (the optimal string alignment distance), the first
/// of several. `None` if all differ in more than a third of the longer name, and in more than one
/// character.
///
/// ```
/// use intentframe_credentials::text::nearest;
/// assert_eq!(nearest("key-file", ["key_file", "backend"]), Some("key_file"));
/// assert_eq!(nearest("colour", ["key_file", "backend"]), None);
/// ```
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = name.chars().count();
    let near = candidates.into_iter().filter_map(|candidate| {
        let most = (length.max(candidate.chars().count()) / 3).max(1);
        Some((distance(name, candidate), candidate)).filter(|(distance, _)| *distance <= most)
    });
    near.min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

fn distance(from: &str, to: &str) -> usize {
    let (from, to) = [from, to].map(|it| it.chars().collect::<Vec<_>>()).into();
    let mut table = vec![vec![0; to.len() + 1]; from.len() + 1];
    for i in 0..=from.len() {
        for j in 0..=to.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = table[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
                replaced.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1)
            };
            if i > 1 && j > 1 && from[i - 2..i] == [to[j - 1], to[j - 2]] {
                table[i][j] = table[i][j].min(table[i - 2][j - 2] + 1);
            }
        }
    }
    table[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_unless_all_are_far() {
        let names = ["get", "has", "list", "store", "export", "import", "delete"];
        for (typed, meant) in [
            ("lsit", Some("list")),
            ("lits", Some("list")),
            ("lst", Some("list")),
            ("strore", Some("store")),
            ("exprot", Some("export")),
            ("Delete", Some("delete")),
            ("gett", Some("get")),
            ("", None),
            ("nonsense", None),
        ] {
            assert_eq!(nearest(typed, names), meant, "{typed}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
