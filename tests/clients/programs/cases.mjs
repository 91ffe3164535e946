// Contains the questions that every client program asks, and prints the answers as JSON. The tests judge the answers.
import fs from "node:fs";
import path from "node:path";

const [, , server, data] = process.argv;

export const baseURL = `${server}/v1`;
export const apiKey = "none";
export const question = "How many cars are there in the picture?";
export const followUp = "Is there a red car?";
export const speech = { modalities: ["text", "audio"], audio: { voice: "ethan", format: "wav" } };

export const read = (name) => fs.readFileSync(path.join(data, name));
export const picture = `data:image/jpeg;base64,${read("cars.jpg").toString("base64")}`;
export const sound = read("query_to_cars.wav").toString("base64");

/** Print the result of each case. A library's exception is the result {"error": …}. */
export async function printAnswers(cases) {
  const answers = {};
  for (const [name, ask] of Object.entries(cases)) {
    try {
      answers[name] = await ask();
    } catch (error) {
      answers[name] = { error: `${error.name}: ${error.message} ${error.responseBody ?? ""}` };
    }
  }
  console.log(JSON.stringify(answers));
}

// a tool with a single possible call, so that a test knows the arguments
export const stock = {
  name: "in_stock",
  description: "How many things of a kind there are",
  parameters: {
    type: "object",
    properties: { kind: { type: "string", enum: ["car"] } },
    required: ["kind"],
    additionalProperties: false,
  },
};
