//! The public API, as text under version control: `docs/api` has a file for each module of the library, and a change
//! of it is a change of that file in the same commit, for a reviewer to see.
//!
//! `make api` writes the listing anew.
//!
//! It is made from the sources, by a parser, and so needs neither a compiler of one version nor a nightly one, and never
//! has to be skipped. What that costs: types are spelt as in the sources, not by their full path, and traits that the
//! compiler finds out by itself (`Send`) are not listed; `tests/embedding.rs` asserts those. An item counts as public
//! when it says `pub`: the lint `unreachable_pub` sees to it that whatever says so is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::{Attribute, Fields, ImplItem, Item, Type, Visibility, parse_quote};

const LISTING: &str = "docs/api";
/// Attributes that a user of the item can notice.
const TOLD: [&str; 5] = ["cfg", "derive", "must_use", "non_exhaustive", "repr"];
/// The program's: not for users of the library.
const NOT_LIBRARY: [&str; 1] = ["cli"];

/// A module: its path below the crate, and what is in its file.
struct Module {
    path: Vec<String>,
    items: Vec<Item>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

/// Whether the documentation leaves it out: what only tests call is no promise.
fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("doc")
            && attribute.parse_args::<syn::Path>().is_ok_and(|argument| argument.is_ident("hidden"))
    })
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// The file and all modules below it.
fn read(file: &Path, folder: &Path, path: Vec<String>, modules: &mut Vec<Module>) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    for item in &parsed.items {
        let Item::Mod(module) = item else { continue };
        let name = module.ident.to_string();
        if is_test(&module.attrs) || module.content.is_some() || (path.is_empty() && NOT_LIBRARY.contains(&&*name)) {
            continue;
        }
        let (flat, nested) = (folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs"));
        let file: PathBuf = if flat.exists() { flat } else { nested };
        read(&file, &folder.join(&name), [path.clone(), vec![name]].concat(), modules);
    }
    modules.push(Module { path, items: parsed.items });
}

/// The name of the type that an `impl` is for.
fn self_name(of: &Type) -> Option<String> {
    match of {
        Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
        Type::Reference(reference) => self_name(&reference.elem),
        _ => None,
    }
}

fn tell(attributes: &mut Vec<Attribute>) {
    attributes.retain(|attribute| TOLD.iter().any(|told| attribute.path().is_ident(told)));
}

/// Leaves of fields what others may see. True if there are more.
fn strip_fields(fields: &mut Fields) -> bool {
    match fields {
        Fields::Named(named) => {
            let all = named.named.len();
            let kept = std::mem::take(&mut named.named).into_iter().filter(|field| is_public(&field.vis));
            named.named = kept.collect();
            named.named.iter_mut().for_each(|field| tell(&mut field.attrs));
            named.named.len() != all
        }
        Fields::Unnamed(unnamed) => {
            for field in &mut unnamed.unnamed {
                tell(&mut field.attrs);
                if !is_public(&field.vis) {
                    field.ty = parse_quote!(_);
                }
            }
            false
        }
        Fields::Unit => false,
    }
}

/// The public side of an item; `None` if it has none. `types`: the names of all public types and traits.
fn public_side(item: &Item, types: &BTreeSet<String>) -> Option<Item> {
    let mut item = item.clone();
    let listed = match &mut item {
        Item::Const(item) => {
            tell(&mut item.attrs);
            is_public(&item.vis)
        }
        Item::Fn(item) => {
            let is_hidden = is_hidden(&item.attrs);
            tell(&mut item.attrs);
            item.block = parse_quote!({});
            is_public(&item.vis) && !is_hidden
        }
        Item::Struct(item) => {
            tell(&mut item.attrs);
            if strip_fields(&mut item.fields) {
                item.attrs.push(parse_quote!(#[doc = " and private fields"]));
            }
            is_public(&item.vis)
        }
        Item::Enum(item) => {
            tell(&mut item.attrs);
            for variant in &mut item.variants {
                tell(&mut variant.attrs);
                variant.fields.iter_mut().for_each(|field| tell(&mut field.attrs));
            }
            is_public(&item.vis)
        }
        Item::Trait(item) => {
            tell(&mut item.attrs);
            for member in &mut item.items {
                match member {
                    syn::TraitItem::Fn(member) => {
                        tell(&mut member.attrs);
                        member.default = member.default.take().map(|_| parse_quote!({}));
                    }
                    syn::TraitItem::Const(member) => tell(&mut member.attrs),
                    syn::TraitItem::Type(member) => tell(&mut member.attrs),
                    _ => {}
                }
            }
            is_public(&item.vis)
        }
        Item::Type(item) => {
            tell(&mut item.attrs);
            is_public(&item.vis)
        }
        Item::Use(item) => {
            let is_hidden = is_hidden(&item.attrs);
            tell(&mut item.attrs);
            is_public(&item.vis) && !is_hidden
        }
        Item::Mod(module) => {
            let listed = is_public(&module.vis) && !NOT_LIBRARY.contains(&&*module.ident.to_string());
            tell(&mut module.attrs);
            listed && module.content.is_none()
        }
        Item::Impl(item) => {
            let test = is_test(&item.attrs);
            tell(&mut item.attrs);
            let of_trait = item.trait_.is_some();
            item.items.retain_mut(|member| match member {
                ImplItem::Fn(member) => {
                    tell(&mut member.attrs);
                    member.block = parse_quote!({});
                    !of_trait && is_public(&member.vis)
                }
                ImplItem::Const(member) => {
                    tell(&mut member.attrs);
                    !of_trait && is_public(&member.vis)
                }
                ImplItem::Type(member) => {
                    tell(&mut member.attrs);
                    true
                }
                _ => false,
            });
            let known = self_name(&item.self_ty).is_some_and(|name| types.contains(&name));
            !test && known && (of_trait || !item.items.is_empty())
        }
        _ => false,
    };
    listed.then_some(item)
}

fn public_types(modules: &[Module]) -> BTreeSet<String> {
    let items = modules.iter().flat_map(|module| &module.items);
    items
        .filter_map(|item| match item {
            Item::Struct(item) if is_public(&item.vis) => Some(item.ident.to_string()),
            Item::Enum(item) if is_public(&item.vis) => Some(item.ident.to_string()),
            _ => None,
        })
        .collect()
}

/// File → listing.
fn listings() -> BTreeMap<String, String> {
    let mut modules = Vec::new();
    read(&root().join("src/lib.rs"), &root().join("src"), Vec::new(), &mut modules);
    modules.sort_by(|one, other| one.path.cmp(&other.path));
    let types = public_types(&modules);
    let mut listings = BTreeMap::<String, String>::new();
    for module in &modules {
        let items: Vec<Item> = module.items.iter().filter_map(|item| public_side(item, &types)).collect();
        if items.is_empty() {
            continue;
        }
        let name = module.path.first().map_or("lib", String::as_str);
        let path = [vec!["adit".to_owned()], module.path.clone()].concat().join("::");
        let text = prettyplease::unparse(&syn::File { shebang: None, frontmatter: None, attrs: Vec::new(), items });
        let listing = listings.entry(format!("{name}.txt")).or_default();
        if !listing.is_empty() {
            listing.push('\n');
        }
        listing.push_str(&format!("// {path}\n\n{text}"));
    }
    listings
}

#[test]
fn the_listing_of_the_public_api_is_up_to_date() {
    let folder = root().join(LISTING);
    let listings = listings();
    assert!(listings.contains_key("proto.txt") && listings.contains_key("device.txt"), "{:?}", listings.keys());
    if std::env::var_os("ADIT_WRITE_API").is_some() {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("the folder of the listing can be made");
        for (name, text) in &listings {
            fs::write(folder.join(name), text).expect("the listing can be written");
        }
    }
    let mut problems = Vec::new();
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(&folder).into_iter().flatten() {
        found.insert(entry.expect("a folder can be listed").file_name().to_string_lossy().into_owned());
    }
    problems.extend(found.iter().filter(|name| !listings.contains_key(*name)).map(|name| format!("{name}: no module")));
    for (name, text) in &listings {
        let written = fs::read_to_string(folder.join(name)).unwrap_or_default();
        if written == *text {
            continue;
        }
        let (old, new): (BTreeSet<&str>, BTreeSet<&str>) = (written.lines().collect(), text.lines().collect());
        problems.extend(old.difference(&new).map(|line| format!("{name}: - {line}")));
        problems.extend(new.difference(&old).map(|line| format!("{name}: + {line}")));
        if old == new {
            problems.push(format!("{name}: other order"));
        }
    }
    let list = problems.join("\n  ");
    assert!(
        problems.is_empty(),
        "\nThe public API differs from {LISTING}. If that is meant, `make api` writes it anew:\n  {list}\n"
    );
}

/// The reader itself: what is listed, and what is not.
#[test]
fn private_things_are_not_listed() {
    let source = "
        /// Said.
        #[derive(Debug)]
        pub struct Open { /// told
            pub a: u8, b: u16 }
        pub struct Shut(u8);
        struct Hidden;
        impl Open { pub fn f(&self) -> u8 { self.a } fn g(&self) {} pub(crate) const X: u8 = 1; }
        impl Drop for Open { fn drop(&mut self) { g() } }
        impl Drop for Hidden { fn drop(&mut self) {} }
        pub(crate) fn no() {}
        #[cfg(test)] mod tests {}
        pub const N: usize = 1 << 4;
    ";
    let items = syn::parse_file(source).expect("the source of this test").items;
    let module = Module { path: Vec::new(), items };
    let types = public_types(std::slice::from_ref(&module));
    let items = module.items.iter().filter_map(|item| public_side(item, &types)).collect();
    let text = prettyplease::unparse(&syn::File { shebang: None, frontmatter: None, attrs: Vec::new(), items });
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let expected = [
        "#[derive(Debug)]",
        "/// and private fields",
        "pub struct Open {",
        "pub a: u8,",
        "}",
        "pub struct Shut(_);",
        "impl Open {",
        "pub fn f(&self) -> u8 {}",
        "}",
        "impl Drop for Open {}",
        "pub const N: usize = 1 << 4;",
    ];
    assert_eq!(lines, expected);
}
