//! The products of a new shop: generated, the same each time, or read from a file.

use std::{fs, ops::RangeInclusive, path::Path};

use serde::Deserialize;

/// A product without an id.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NewProduct {
    pub(crate) category: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) price_cents: i64,
    pub(crate) stock: i64,
}

pub(crate) const CATEGORIES: [&str; 8] =
    ["Kitchen", "Garden", "Books", "Toys", "Tools", "Outdoors", "Music", "Office"];
pub(crate) const MATERIALS: [&str; 10] =
    ["Oak", "Steel", "Linen", "Copper", "Glass", "Bamboo", "Wool", "Clay", "Brass", "Cork"];
const THINGS: [&str; 12] = [
    "Kettle", "Lamp", "Notebook", "Basket", "Clock", "Bench", "Whistle", "Mug", "Shelf", "Puzzle",
    "Hammer", "Tent",
];
const AUTHORS: [&str; 6] = ["Ada", "Grace", "Edsger", "Barbara", "Tony", "Frances"];
const OPINIONS: [&str; 5] = [
    "Exactly what I was looking for.",
    "Sturdy, and nicer than on the picture.",
    "It came late, but it does its work.",
    "A present that was well received.",
    "Not for me, though well made.",
];

/// Generates a product. The same number always gives the same product.
pub(crate) fn product(number: u32) -> NewProduct {
    let chance = scatter(number);
    let pick = |from: &[&'static str], shift: u32| from[(chance >> shift) as usize % from.len()];
    let (material, thing) = (pick(&MATERIALS, 8), pick(&THINGS, 16));
    NewProduct {
        category: pick(&CATEGORIES, 0).to_owned(),
        name: format!("{material} {thing} No. {number}"),
        description: format!(
            "A {} made of {}, one of {} of its kind.",
            thing.to_lowercase(),
            material.to_lowercase(),
            3 + chance % 40
        ),
        price_cents: i64::try_from(199 + chance % 20_000).unwrap_or(199),
        stock: i64::try_from((chance >> 24) % 50).unwrap_or(0),
    }
}

/// Generates the reviews of a product: author, stars, opinion.
pub(crate) fn reviews(number: u32) -> impl Iterator<Item = (&'static str, i64, &'static str)> {
    let count = scatter(number) % 4;
    (0..count).map(move |review| {
        let chance = scatter(number.wrapping_mul(31).wrapping_add(review as u32 + 1));
        let author = AUTHORS[chance as usize % AUTHORS.len()];
        let opinion = OPINIONS[(chance >> 8) as usize % OPINIONS.len()];
        (author, 2 + (chance >> 16) as i64 % 4, opinion)
    })
}

/// Reads the products of a CSV file. A broken line is reported with its number and skipped.
pub(crate) fn read_csv(path: &Path) -> Result<Vec<NewProduct>, String> {
    let cannot_read = |error: csv::Error| format!("cannot read {}: {error}", path.display());
    let text = fs::read(path).map_err(|error| cannot_read(error.into()))?;
    let report = |lines: String, why: String| {
        eprintln!("{}:{lines}: skipped: {why}", path.display());
    };
    let products = products(&text, report).map_err(cannot_read)?;
    if products.is_empty() {
        return Err(format!(
            "{} has no usable line; columns are category,name,description,price_cents,stock",
            path.display()
        ));
    }
    Ok(products)
}

/// Parses the products of a CSV text, and reports each invalid record with its lines and the reason.
fn products(
    text: &[u8],
    mut report: impl FnMut(String, String),
) -> Result<Vec<NewProduct>, csv::Error> {
    // The CSV reader would count the LF of a CRLF as part of the next line.
    let text = String::from_utf8_lossy(text).replace("\r\n", "\n");
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
    let headers = reader.headers()?.clone();
    let (mut products, mut record) = (Vec::new(), csv::StringRecord::new());
    loop {
        let read = match reader.read_record(&mut record) {
            Ok(false) => return Ok(products),
            Ok(true) => record.deserialize(Some(&headers)).map_err(|error| why(&error)),
            Err(error) => Err(why(&error)),
        };
        match read.and_then(|product| check(&product).map(|()| product)) {
            Ok(product) => products.push(product),
            Err(why) => report(lines(&record, &reader), why),
        }
    }
}

/// The lines of the record that was just read: a field may span lines, and a `"` that is never closed spans all that
/// follow.
fn lines(record: &csv::StringRecord, reader: &csv::Reader<&[u8]>) -> String {
    let last = reader.position().line().saturating_sub(1);
    match record.position().map(csv::Position::line) {
        Some(first) if first < last => format!("{first} to {last}"),
        Some(first) => first.to_string(),
        None => last.to_string(),
    }
}

/// The reason a record is invalid, without its position, which is reported already.
fn why(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => err.to_string(),
        _ => error.to_string(),
    }
}

/// The limits of prices and stocks.
pub(crate) const AMOUNTS: RangeInclusive<i64> = 0..=1_000_000_000;

fn check(product: &NewProduct) -> Result<(), String> {
    let NewProduct { category, name, price_cents, stock, .. } = product;
    if category.trim().is_empty() || name.trim().is_empty() {
        return Err("category and name may not be empty".to_owned());
    }
    for (what, number) in [("price_cents", price_cents), ("stock", stock)] {
        if !AMOUNTS.contains(number) {
            let (least, most) = (AMOUNTS.start(), AMOUNTS.end());
            return Err(format!("{what} is {number}, allowed is {least} to {most}"));
        }
    }
    Ok(())
}

/// Pseudorandom bits from a number: splitmix64.
fn scatter(number: u32) -> u64 {
    let mut z = u64::from(number).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_always_makes_the_same_product() {
        assert_eq!(product(7).name, product(7).name);
        assert_ne!(product(7).name, product(8).name);
    }

    #[test]
    fn a_broken_line_is_skipped_and_the_rest_is_read() {
        let path = std::env::temp_dir().join(format!("larder-shop-{}.csv", std::process::id()));
        let text = "category,name,description,price_cents,stock\n\
                    Toys,Top,It spins,500,3\nToys,Bad,It costs,cheap,3\nToys,Minus,It owes,-1,3\n\
                    Toys,Kite,\"It flies, far\",900,1\n";
        std::fs::write(&path, text).unwrap();
        let names: Vec<_> = read_csv(&path).unwrap().into_iter().map(|p| p.name).collect();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(names, ["Top", "Kite"]);
        assert!(read_csv(&path).unwrap_err().starts_with("cannot read"));
    }

    #[test]
    fn a_broken_line_is_reported_with_its_number_and_skipped() {
        let text = "category,name,description,price_cents,stock\n\
                    Books,One,fine,100,1\n\
                    \n\
                    Books,Two,\"over\ntwo lines\",200,2\n\
                    Books,Three,too dear,9223372036854775807,3\n\
                    Books,,nameless,1,1\n\
                    Books,Four,not a number,x,4\n\
                    Books,Five,\"never closed,1,1\nBooks,Six,lost,1,1\n";
        for text in [text.to_owned(), text.replace('\n', "\r\n")] {
            let mut reports = Vec::new();
            let found = products(text.as_bytes(), |lines, why| reports.push((lines, why))).unwrap();
            let names: Vec<_> = found.iter().map(|product| &*product.name).collect();
            assert_eq!(names, ["One", "Two"]);
            let lines: Vec<_> = reports.iter().map(|(lines, _)| &**lines).collect();
            assert_eq!(lines, ["6", "7", "8", "9 to 10"], "{reports:?}");
            assert!(reports[0].1.contains("allowed is 0 to 1000000000"), "{reports:?}");
        }
    }
}
