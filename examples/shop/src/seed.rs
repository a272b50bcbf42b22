//! The products of a new shop: made up, the same each time, or read from a file.

use std::path::Path;

use serde::Deserialize;

/// A product before it has a number.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NewProduct {
    pub(crate) category: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) price_cents: i64,
    pub(crate) stock: i64,
}

const CATEGORIES: [&str; 8] =
    ["Kitchen", "Garden", "Books", "Toys", "Tools", "Outdoors", "Music", "Office"];
const MATERIALS: [&str; 10] =
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

/// A made-up product. The same number always makes the same one.
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

/// The reviews of a made-up product: author, stars, opinion.
pub(crate) fn reviews(number: u32) -> impl Iterator<Item = (&'static str, i64, &'static str)> {
    let count = scatter(number) % 4;
    (0..count).map(move |review| {
        let chance = scatter(number.wrapping_mul(31).wrapping_add(review as u32 + 1));
        let author = AUTHORS[chance as usize % AUTHORS.len()];
        let opinion = OPINIONS[(chance >> 8) as usize % OPINIONS.len()];
        (author, 2 + (chance >> 16) as i64 % 4, opinion)
    })
}

/// The products of a CSV file. A line that is broken is reported with its number and skipped.
pub(crate) fn read_csv(path: &Path) -> Result<Vec<NewProduct>, String> {
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .from_path(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let mut products = Vec::new();
    for (at, record) in reader.deserialize::<NewProduct>().enumerate() {
        // The header is line 1. A field that spans lines moves the rest, which the reader knows.
        let line = |error: &csv::Error| error.position().map_or(at as u64 + 2, csv::Position::line);
        match record {
            Ok(product) => match check(&product) {
                Ok(()) => products.push(product),
                Err(why) => eprintln!("{}:{}: skipped: {why}", path.display(), at + 2),
            },
            Err(error) => {
                eprintln!("{}:{}: skipped: {error}", path.display(), line(&error));
            }
        }
    }
    if products.is_empty() {
        return Err(format!(
            "{} has no usable line; columns are category,name,description,price_cents,stock",
            path.display()
        ));
    }
    Ok(products)
}

fn check(product: &NewProduct) -> Result<(), String> {
    let NewProduct { category, name, price_cents, stock, .. } = product;
    if category.trim().is_empty() || name.trim().is_empty() {
        return Err("category and name may not be empty".to_owned());
    }
    if *price_cents < 0 || *stock < 0 {
        return Err(format!("price_cents {price_cents} and stock {stock} may not be negative"));
    }
    Ok(())
}

/// Bits that look random but are not: splitmix64.
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
}
