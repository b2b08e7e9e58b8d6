/**
 * The bundle format in a page. What else there is of it (files of tensors, identities) is imported by name,
 * by those who need it and are fetched later.
 */
export * from "./played.ts";
