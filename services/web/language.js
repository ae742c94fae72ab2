// The interface in English and Spanish. The page's own text is the English; only what scripts say is written here twice.

const ENGLISH = {
  similarity: "similarity {share}",
  own_picture: "your own picture",
  after_picture: "after {title}",
  after_pictures: "after {count} pictures",
  in_style_of: "in the style of {style}",
  by: "{title}, {artist}",
  finding: "Looking through the gallery …",
  near_styles: "Looking for styles …",
  checking: "Looking at your picture …",
  painting: "Painting …",
  optimizing: "The optimiser paints; it may take a minute or two.",
  waiting: "A preview is there; the optimiser begins in a moment.",
  seconds: "{count} s",
  sketch: "A preview, painted in one pass; the optimiser’s painting takes its place.",
  stopped: "Stopped.",
  found: { one: "One picture found.", other: "{count} pictures found." },
  painted: "The painting is ready: {title}, in the style of {style}.",
  made_content: "The picture lies at distance {distance} from your words.",
  made_style: "The style lies at distance {distance} from the picture’s.",
  made_fast: "Painted by the fast network {model} on {provider}.",
  made_fast_near: "Painted by the fast network {model} on {provider}, which learned a style at distance {distance}.",
  made_instant: "Painted in one pass, by the style’s statistics, on {provider}.",
  made_optimize: { one: "Painted by the optimiser in one step on {provider}.", other: "Painted by the optimiser in {count} steps on {provider}." },
  made_times: "Finding took {retrieve}, painting {paint} ({stages}).",
  made_times_own: "Painting took {stages}.",
  stage_retrieve: "finding",
  stage_paint: "painting",
  stage_decode: "reading",
  stage_network: "network",
  stage_finish: "finishing",
  stage_encode: "writing",
  stage_optimize: "optimiser",
  alt_before: "{title}, before painting",
  alt_after: "{title}, painted in the style of {style}",
  retry: "Try again",
  drop_content: "Drop it here to paint it",
  drop_style: "Drop it here to paint in its style",
  drop_files: "Only a picture file can be dropped here.",
  about: { one: "{gallery}: one picture.", other: "{gallery}: {count} pictures." },
  gallery_met: "The Metropolitan Museum of Art, open access",
  hint_no_answer: "Check the connection, then try again.",
  hint_large_upload: "The file may be too large; try a smaller picture.",
};

const SPANISH = {
  motto: "Palabras que se hacen cuadro.",
  words: "Palabras",
  title: "Título",
  description: "Descripción",
  paint: "Pintar",
  own_content: "o empieza con una imagen tuya",
  examples: "O parte de una de estas",
  compare: "Cuánto se ve de la imagen antes de pintarla",
  stop: "Detener",
  before: "imagen",
  after: "pintura",
  download: "Descargar",
  own_note: "La dirección de esta página no contiene tu imagen, así que un enlace no puede repetir esta pintura.",
  options: "Cómo se pinta",
  size: "Lado mayor",
  strength: "Intensidad",
  preserve_color: "Conservar los colores de la imagen",
  engine: "Quién pinta",
  engine_auto: "lo que mejor vaya con el estilo",
  engine_fast: "una red rápida, al instante",
  engine_instant: "una pasada, en cualquier estilo",
  engine_optimize: "el optimizador, en un minuto más o menos",
  steps: "Pasos del optimizador",
  again: "Pintar de nuevo",
  contents: "La imagen",
  contents_note: "Lo que mejor responde a tus palabras. Elige otra para pintarla en su lugar.",
  styles: "El estilo",
  styles_note: "Cuadros de manera parecida a la de esa imagen.",
  fast: "Estilos que una red ha aprendido",
  fast_note: "Estos se pintan al instante.",
  own_style: "o toma el estilo de una imagen tuya",
  docs: "Para programas: la interfaz HTTP",

  similarity: "parecido {share}",
  own_picture: "tu imagen",
  after_picture: "según {title}",
  after_pictures: "según {count} cuadros",
  in_style_of: "al estilo de {style}",
  by: "{title}, {artist}",
  finding: "Buscando en la galería …",
  near_styles: "Buscando estilos …",
  checking: "Mirando tu imagen …",
  painting: "Pintando …",
  optimizing: "El optimizador pinta; puede tardar un minuto o dos.",
  waiting: "Ya hay una vista previa; el optimizador empieza enseguida.",
  seconds: "{count} s",
  sketch: "Una vista previa, pintada de una vez; la pintura del optimizador la sustituirá.",
  stopped: "Detenido.",
  found: { one: "Una imagen encontrada.", other: "{count} imágenes encontradas." },
  painted: "La pintura está lista: {title}, al estilo de {style}.",
  made_content: "La imagen está a distancia {distance} de tus palabras.",
  made_style: "El estilo está a distancia {distance} del de la imagen.",
  made_fast: "Pintado por la red rápida {model} en {provider}.",
  made_fast_near: "Pintado por la red rápida {model} en {provider}, que aprendió un estilo a distancia {distance}.",
  made_instant: "Pintado de una vez, según la estadística del estilo, en {provider}.",
  made_optimize: { one: "Pintado por el optimizador en un paso en {provider}.", other: "Pintado por el optimizador en {count} pasos en {provider}." },
  made_times: "Buscar llevó {retrieve}; pintar, {paint} ({stages}).",
  made_times_own: "Pintar llevó {stages}.",
  stage_retrieve: "buscar",
  stage_paint: "pintar",
  stage_decode: "leer",
  stage_network: "red",
  stage_finish: "acabado",
  stage_encode: "escribir",
  stage_optimize: "optimizador",
  alt_before: "{title}, antes de pintarla",
  alt_after: "{title}, pintada al estilo de {style}",
  retry: "Intentar de nuevo",
  drop_content: "Suéltala aquí para pintarla",
  drop_style: "Suéltala aquí para pintar con su estilo",
  drop_files: "Aquí solo se puede soltar un archivo de imagen.",
  about: { one: "{gallery}: una imagen.", other: "{gallery}: {count} imágenes." },
  gallery_met: "The Metropolitan Museum of Art, acceso abierto",
  hint_no_answer: "Comprueba la conexión e inténtalo de nuevo.",
  hint_large_upload: "Quizá el archivo sea demasiado grande; prueba con una imagen menor.",

  // The gallery's own texts decide which words find something; those of the default one are English.
  catalogue_language: "Esta galería está catalogada en inglés; tus palabras en español se traducen con un léxico.",

  // The server explains a refusal in English; these say the same in a line.
  refused_no_match: "Ninguna imagen de la galería responde a esas palabras.",
  refused_not_found: "Eso ya no está, o nunca estuvo, en la galería.",
  refused_not_a_picture: "Ese archivo no es una imagen que se pueda leer.",
  refused_empty_picture: "Ese archivo está vacío.",
  refused_truncated_picture: "Esa imagen está incompleta o dañada.",
  refused_picture_too_large: "Esa imagen es demasiado grande.",
  refused_picture_too_small: "Esa imagen es demasiado pequeña.",
  refused_body_too_large: "Ese archivo es demasiado grande.",
  refused_busy: "Hay demasiadas pinturas en curso.",
  refused_unreachable: "Una parte del servicio no responde.",
  refused_no_answer: "El servidor no responde.",
  refused_invalid_input: "Algo de lo pedido no es posible.",
};

const DICTIONARIES = { en: ENGLISH, es: SPANISH };
const MEMORY = "lienzo-language";

let current = remembered() ?? (navigator.languages ?? [navigator.language]).map((tag) => tag.slice(0, 2)).find((tag) => tag in DICTIONARIES) ?? "en";

export const language = () => current;

/** Say `key` in the current language, with `{name}` filled in; `count` also chooses the plural. */
export function t(key, values = {}) {
  let text = DICTIONARIES[current][key] ?? ENGLISH[key] ?? "";
  if (typeof text === "object") text = text[new Intl.PluralRules(current).select(values.count)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === "number" ? number(values[name]) : values[name] ?? ""));
}

export const number = (value, options) => new Intl.NumberFormat(current, options).format(value);

/** A duration, in milliseconds below a second. */
export function duration(milliseconds) {
  return milliseconds < 1000
    ? `${number(Math.round(milliseconds))} ms`
    : `${number(milliseconds / 1000, { maximumFractionDigits: 1 })} s`;
}

/** Translate the page's own text in place: `data-t` the text, `data-t-aria-label` the name. */
export function translate(tag = current) {
  current = tag;
  document.documentElement.lang = tag;
  for (const element of document.querySelectorAll("[data-t]")) {
    ENGLISH[element.dataset.t] ??= element.textContent;
    element.textContent = t(element.dataset.t);
  }
  for (const element of document.querySelectorAll("[data-t-aria-label]")) {
    ENGLISH[element.dataset.tAriaLabel] ??= element.getAttribute("aria-label");
    element.setAttribute("aria-label", t(element.dataset.tAriaLabel));
  }
}

/** Change to the other language, and keep to it. */
export function toggle() {
  translate(current === "en" ? "es" : "en");
  try {
    localStorage.setItem(MEMORY, current);
  } catch {
    // A browser that stores nothing asks again next time.
  }
}

function remembered() {
  try {
    const tag = localStorage.getItem(MEMORY);
    return tag in DICTIONARIES ? tag : null;
  } catch {
    return null;
  }
}
